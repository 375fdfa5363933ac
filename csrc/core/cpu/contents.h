#pragma once

#include "../coefficients.h"

// What the values in tables and arguments must be, in the words of llpf_fast/ops/contents.py. Each function refuses the
// call, as the checks of core/checks.h do.
namespace llpf::cpu {

/// The table stays in a buffer of `numel` elements, its segments apart, its groups whole, each segment covered exactly by
/// its chunks. Reads every row: a thousandth of an op's work, with a chunk for every 4096 elements.
void check_table(const char* op, const Table& table, int64_t numel);
/// The same of the segments alone, in a buffer of any size.
void check_segments(const char* op, const Table& table);

/// What an active path reads of a tick's rule must be a number of at least 0; values that are not read may be anything.
void check_rule(const char* op, const Table& table, const RuleArguments& rule, int64_t paths);

/// Whether a path is active; what `active` has for it must be a number.
bool checked_active(const char* op, const Active& active, int64_t path);

/// The refusal of a value that is not "at least 0 and finite".
[[noreturn]] void refuse_element(const char* op, const char* name, const Rows& rows, int64_t path, int64_t column);

}  // namespace llpf::cpu
