import pytest
import torch
from learn2learn.vision.models import CNN4Backbone, ResNet12Backbone, WRN28Backbone

import fewshot.backbones
from harness.methods import METHODS, Training
from harness.methods.base import MethodConfig
from harness.models import create_network
from sage_timm import saliency

LEARN2LEARNS = {
    "cnn4": (lambda: CNN4Backbone(hidden_size=64), 1600),
    "cnn4_32": (lambda: CNN4Backbone(hidden_size=32), 800),
    "resnet12": (ResNet12Backbone, 640),
    "wrn28": (WRN28Backbone, 640),
}
LOSS = torch.nn.CrossEntropyLoss()


def network(name, size=84, classes=5):
    torch.manual_seed(0)
    return create_network(name, classes, size)


@pytest.mark.parametrize("name", LEARN2LEARNS)
def test_an_embedding_is_learn2learns_own(name):
    model = network(name).eval()
    make, features = LEARN2LEARNS[name]
    theirs = make().eval()
    theirs.load_state_dict(model.features.state_dict(), strict=False)
    images = torch.randn(1, 3, 84, 84)
    with torch.no_grad():
        embeddings = model.forward_head(model.forward_features(images), pre_logits=True)
        torch.testing.assert_close(embeddings, theirs(images))
        torch.testing.assert_close(model(images), model.classifier(embeddings))
    assert embeddings.shape == (1, features) == (1, model.num_features)


@pytest.mark.parametrize(("name", "size"), [("cnn4", 64), ("cnn4_32", 16), ("resnet12", 80)])
def test_other_image_sizes_work(name, size):
    model = network(name, size)
    assert model(torch.randn(2, 3, size, size)).shape == (2, 5)


def test_wrn28_takes_any_size_and_tells_the_classes():
    with torch.no_grad():
        assert network("wrn28", 32, 7).eval()(torch.randn(1, 3, 32, 32)).shape == (1, 7)


@pytest.mark.parametrize(
    ("name", "size", "text"),
    [
        ("resnet12", 64, "resnet12 .* needs an image_size of 80 or more, got 64"),
        ("cnn4", 15, "cnn4 halves the image four times and needs 16 pixels, got 15"),
    ],
)
def test_an_image_that_is_too_small_is_refused(name, size, text):
    with pytest.raises(ValueError, match=text):
        network(name, size)


def test_there_are_no_pretrained_weights():
    with pytest.raises(ValueError, match="cnn4 has no pretrained weights"):
        fewshot.backbones.cnn4(pretrained=True)


def dropped_batches(model):
    return [int(m.num_batches_tracked) for m in model.modules() if hasattr(m, "DropBlock")]


def test_dropblock_counts_training_batches_alone_and_a_checkpoint_holds_them():
    """learn2learn's own count also goes up in evaluation, and is lost when a run is resumed."""
    model = network("resnet12")
    images, targets = torch.randn(2, 3, 84, 84), torch.tensor([0, 1])
    model(images)
    assert dropped_batches(model) == [1, 1, 1, 1]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    saliency(model, images, targets, LOSS)
    model.eval()
    with torch.inference_mode():
        model(images)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    other = network("resnet12")
    other.load_state_dict(model.state_dict())
    assert dropped_batches(other) == [1, 1, 1, 1]


NEEDS_TIMM = {"recursivemix", "keep-cutout-early", "keep-randaugment-early"}


@pytest.mark.parametrize("method", [name for name in METHODS if name not in NEEDS_TIMM])
def test_every_method_trains_a_backbone(method):
    model = network("cnn4_32", 32).train()
    mix = METHODS[method](Training(MethodConfig(), model, LOSS, 5))
    images = torch.randn(20, 3, 32, 32)
    mixed, targets = mix(images, torch.arange(20) % 5)
    loss = LOSS(model(mixed), targets)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("method", sorted(NEEDS_TIMM))
def test_a_method_that_needs_more_of_timms_face_says_so(method):
    with pytest.raises(ValueError, match=r"needs a timm model with .+, got"):
        METHODS[method](Training(MethodConfig(), network("cnn4_32", 32), LOSS, 5))


@pytest.mark.parametrize("name", ["cnn4_32", "resnet12", "wrn28"])
def test_stages_have_the_channels_that_they_name(name):
    model = network(name, 84).eval()
    seen = []
    for info in model.feature_info:
        model.get_submodule(info["module"]).register_forward_hook(
            lambda _module, _inputs, output: seen.append(output.shape[1])
        )
    model(torch.randn(1, 3, 84, 84))
    assert seen == [info["num_chs"] for info in model.feature_info]


@pytest.mark.parametrize("name", ["resnet12", "wrn28"])
def test_manifold_mixup_finds_the_stages(name):
    mix = METHODS["manifold"](Training(MethodConfig(), network(name), LOSS, 5))
    assert len(mix.layers) == 2
