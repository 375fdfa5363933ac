"""The papers' networks for 32x32: their size, their shapes, gradients, saving."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.fx import symbolic_trace
from torch.nn import functional as F

from llpf_fast.models import build_model, check_images, model_names

#: Parameters for 10 and for 100 classes, and where the number is from. "Authors" is the network of the same name in the
#: LLPF authors' programs (DFL_torch 9ded1ad, LLR2 4b2db32), counted by hand from its layers.
SIZES = {
    "resnet20": (269_722, 275_572),  # "0.27M" in arXiv 1512.03385, table 6; 64 x 90 + 90 more for 100 classes
    "resnet18": (11_173_962, 11_220_132),  # the authors' (torchvision's 11,181,642 less 7,680 of the 7x7 stem)
    "cct7": (3_760_139, 3_783_269),  # the authors' cct_7_3x1_32; "3.76M" in arXiv 2104.05704
    "vgg11-bn": (9_231_114, 9_277_284),  # the authors' VGG('VGG11')
    "vgg16": (14_719_818, 14_765_988),  # 14,714,688 in convolutions (Simonyan & Zisserman), 512 x 10 + 10
    "vgg16-bn": (14_728_266, 14_774_436),  # the same and 2 x 4,224 of BatchNorm
    "mobilenet-v2": (2_236_682, 2_351_972),  # torchvision's; the authors' has 2,237,770
    "shufflenet-v2": (1_263_854, 1_356_104),  # torchvision's; the authors' (a first-version ShuffleNet) has 960,706
    "efficientnet-b0": (4_020_358, 4_135_648),  # torchvision's; the authors' (without the last convolution) 3,599,686
    "regnetx-200mf": (2_321_946, 2_355_156),  # the authors' RegNetX_200MF
    "dla": (15_232_314, 15_278_484),  # timm's dla34 less 1,920 of the stem; the authors' (other trees) 16,291,386
    "vit-small": (21_342_346, 21_376_996),  # ViT-S/4; the authors have none for 32x32
    "vit-tiny": (5_362_762, 5_380_132),  # ViT-Ti/4
}
#: Height and width that the last convolution leaves of 32x32: what the stems were adapted for.
LEAVES = {
    "resnet20": ("layer3", 8),
    "resnet18": ("layer4", 4),
    "mobilenet-v2": ("features", 8),
    "shufflenet-v2": ("conv5", 4),
    "efficientnet-b0": ("features", 2),
    "regnetx-200mf": ("s4", 8),
    "dla": ("level5", 4),
    "vgg16": ("features", 1),
}


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_resnet20_computes_what_its_paper_says():
    """He et al., arXiv 1512.03385, section 4.2, written out: shortcuts of option A, without a parameter."""
    torch.manual_seed(0)
    model = build_model("resnet20").eval()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.add_(torch.rand_like(buffer))

    def normed(x, norm):
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)

    images = torch.randn(2, 3, 32, 32)
    x = normed(F.conv2d(images, model.conv1.weight, padding=1), model.bn1).relu()
    for stage, blocks in enumerate((model.layer1, model.layer2, model.layer3)):
        for at, block in enumerate(blocks):
            stride = 2 if stage and not at else 1
            y = normed(F.conv2d(x, block.conv1.weight, stride=stride, padding=1), block.bn1).relu()
            y = normed(F.conv2d(y, block.conv2.weight, padding=1), block.bn2)
            if stride == 2:
                none = torch.zeros(2, x.shape[1] // 2, *y.shape[2:])
                x = torch.cat([none, x[:, :, ::2, ::2], none], 1)
            x = (x + y).relu()
    expected = F.linear(F.adaptive_avg_pool2d(x, 1).flatten(1), model.linear.weight, model.linear.bias)
    with torch.no_grad():
        torch.testing.assert_close(model(images), expected.detach())
    assert {type(layer) for layer in model.modules() if list(layer.parameters(recurse=False))} == {
        nn.Conv2d,
        nn.BatchNorm2d,
        nn.Linear,
    }


def test_resnet20_can_be_traced_and_stacked():
    """The certificate's enclosures read its graph; several paths at once stack its parameters."""
    torch.manual_seed(0)
    models = [build_model("resnet20").eval() for _ in range(2)]
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = torch.stack([model(images) for model in models])
        assert torch.equal(symbolic_trace(models[0])(images), expected[0])
        parameters, buffers = stack_module_state(models)
        stacked = vmap(lambda p, b: functional_call(models[0], (p, b), images))(parameters, buffers)
    torch.testing.assert_close(stacked, expected)


def test_every_network_for_32x32_is_here():
    assert set(SIZES) == set(model_names()) - {"lenet5", "mlp"}


@pytest.mark.parametrize("name", SIZES)
def test_size_gradients_and_saving(name):
    for classes, expected in zip((100, 10), reversed(SIZES[name]), strict=True):
        torch.manual_seed(1)
        model = build_model(name, classes=classes)
        assert size(model) == expected
    images = torch.randn(2, 3, 32, 32)
    check_images(name, images)
    scores = model(images)
    assert scores.shape == (2, 10)
    F.cross_entropy(scores, torch.tensor([3, 7])).backward()
    for parameter, value in model.named_parameters():
        assert value.grad is not None, f"{parameter} takes no part"
        assert value.grad.isfinite().all(), parameter
    torch.manual_seed(2)
    other = build_model(name)
    state = model.state_dict()
    with torch.no_grad():
        assert not torch.equal(other.eval()(images), model.eval()(images))
        other.load_state_dict(state)
        assert torch.equal(other(images), model(images))
    assert list(other.state_dict()) == list(state)


@pytest.mark.parametrize("name", LEAVES)
def test_the_stem_leaves_something_of_32x32(name):
    layer, expected = LEAVES[name]
    model = build_model(name).eval()
    sizes = []
    model.get_submodule(layer).register_forward_hook(lambda _module, _inputs, output: sizes.append(output.shape[-2:]))
    with torch.no_grad():
        model(torch.randn(1, 3, 32, 32))
    assert sizes == [(expected, expected)]
