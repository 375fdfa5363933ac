"""Turn a .cu file into C++ for the emulator: kernel launches become calls, dynamic shared memory a pointer.

python translate.py FROM.cu TO.cpp
"""

import re
import sys
from pathlib import Path


def translate(source: str) -> str:
    out, at = [], 0
    for launch in re.finditer(r"(\w+)<<<(.*?)>>>\(", source, re.DOTALL):
        end = depth = 0
        for end in range(launch.end() - 1, len(source)):
            depth += {"(": 1, ")": -1}.get(source[end], 0)
            if depth == 0:
                break
        arguments = source[launch.end() : end]
        out += [source[at : launch.start()], f"emulator::launch({launch[2]}, [=] {{ {launch[1]}({arguments}); }})"]
        at = end + 1
    text = "".join([*out, source[at:]])
    return re.sub(
        r"extern __shared__ (\w+) (\w+)\[\];", r"auto* \2 = static_cast<\1*>(emulator::shared_memory());", text
    )


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(translate(Path(sys.argv[1]).read_text()))
