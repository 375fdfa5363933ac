import threading

import pytest
import torch

from llpf_fast.batches.precision import SharedSwitches, float32_products

CPU = torch.device("cpu")


@pytest.fixture
def medium():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield torch.backends.mkldnn.matmul
    torch.set_float32_matmul_precision(before)


def test_float32_on_a_cpu_is_not_rounded_to_bfloat16(medium):
    assert medium.fp32_precision == "bf16"
    with float32_products("float32", CPU):
        assert medium.fp32_precision == "ieee"
        with float32_products("float32", CPU):
            pass
        assert medium.fp32_precision == "ieee"
    assert medium.fp32_precision == "bf16"


def test_the_last_of_several_threads_puts_switches_back():
    value = ["outside"]

    def set_all(stack):
        stack.callback(value.__setitem__, 0, value[0])
        value[0] = "inside"

    switches, entered, leave = SharedSwitches(set_all), threading.Event(), threading.Event()

    def use():
        with switches:
            entered.set()
            leave.wait(10)

    with switches:
        other = threading.Thread(target=use)
        other.start()
        assert entered.wait(10)
    assert value == ["inside"]
    leave.set()
    other.join(10)
    assert value == ["outside"]
