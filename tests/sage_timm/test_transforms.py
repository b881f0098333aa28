import pytest
import torch
from timm.loss import SoftTargetCrossEntropy
from torch.utils.data import default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2

from sage_timm import SageMix, best_translation, blend, random_translations, saliency


@pytest.fixture
def collated(batch):
    x, y = batch()
    return default_collate(list(zip(x, y.tolist(), strict=True)))


def test_works_in_compose_on_a_collated_batch(collated, small_net):
    transform = v2.Compose([v2.RandomHorizontalFlip(), SageMix(num_classes=5, model=small_net())])
    images, labels = transform(*collated)
    assert images.shape == (6, 3, 12, 9)
    torch.testing.assert_close(labels.sum(dim=1), torch.ones(6))
    assert not torch.equal(images, collated[0])


def test_stands_beside_mixup_and_cutmix_in_random_choice(collated, small_net):
    model = small_net()
    sage, mixup, cutmix = (
        SageMix(num_classes=5, model=model),
        v2.MixUp(num_classes=5),
        v2.CutMix(num_classes=5),
    )
    chosen = []
    for transform in (sage, mixup, cutmix):
        transform.register_forward_hook(lambda m, _i, _o: chosen.append(type(m)))
    choice = v2.RandomChoice([sage, mixup, cutmix])
    torch.manual_seed(0)
    for _ in range(20):
        images, labels = choice(*collated)
        assert images.shape == (6, 3, 12, 9)
        assert labels.shape == (6, 5)
        torch.testing.assert_close(labels.sum(dim=1), torch.ones(6))
    assert set(chosen) == {SageMix, v2.MixUp, v2.CutMix}


def test_composes_the_public_functions(batch, small_net):
    x, y = batch(dtype=torch.float64)
    model = small_net(dtype=torch.float64)
    torch.manual_seed(3)
    options = {"lambda_max": 0.6, "search": "random", "search_fraction": 0.1}
    transform = SageMix(alpha=0.7, num_classes=5, model=model, **options)
    images, labels = transform(x, y)

    torch.manual_seed(3)
    lam = 0.6 * v2.MixUp(alpha=0.7, num_classes=5).make_params([x])["lam"]
    candidates = random_translations(12, 9, 0.1)
    clean = torch.nn.functional.one_hot(y, 5).float()
    maps = saliency(model, x, clean, SoftTargetCrossEntropy())
    own, other = lam * maps, (1 - lam) * maps.roll(1, 0)
    translation = best_translation(own, other, candidates)
    expected, mask, _ = blend(x, x.roll(1, 0), own, other, translation)
    gamma = mask.mean(dim=(1, 2, 3))[:, None].float()
    torch.testing.assert_close(images, expected)
    expected_labels = gamma * clean + (1 - gamma) * clean.roll(1, 0)
    torch.testing.assert_close(labels, expected_labels, check_dtype=False)


def test_a_share_of_the_batch_is_mixed_by_sage_and_the_rest_by_mixup(batch, small_net):
    """Images 0 to 2 and 7 to 9 have maps; of an image and the one before it, both need one."""
    x, y = batch(count=10)
    model = small_net()
    torch.manual_seed(0)
    images, labels = SageMix(num_classes=5, model=model, lambda_max=1, saliency_fraction=0.6)(x, y)
    torch.manual_seed(0)
    plain, plain_labels = v2.MixUp(num_classes=5)(x, y)
    rest = [3, 4, 5, 6, 7]
    torch.testing.assert_close(images[rest], plain[rest], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(labels[rest], plain_labels[rest], rtol=1e-4, atol=1e-5)
    for index in (0, 1, 2, 8, 9):
        assert not torch.allclose(images[index], plain[index], atol=1e-3)


def test_takes_what_v2_mixup_takes(batch, small_net):
    """A structure of one's own, image tensors of torchvision's type, labels in probabilities."""
    x, y = batch()
    transform = SageMix(labels_getter=lambda sample: sample["label"], model=small_net())
    sample = {
        "label": torch.nn.functional.one_hot(y, 5).float(),
        "image": tv_tensors.Image(x),
        "path": "a/b.jpg",
    }
    out = transform(sample)
    assert type(out["image"]) is tv_tensors.Image
    assert out["path"] == "a/b.jpg"
    assert out["label"].shape == (6, 5)
    assert not torch.equal(out["image"], x)


def test_a_batch_of_one_stays_as_it_is(batch, small_net):
    x, y = batch(count=1)
    images, labels = SageMix(num_classes=5, model=small_net())(x, y)
    assert torch.equal(images, x)
    assert labels.argmax() == y


def test_the_same_seed_gives_the_same_bits(batch, small_net):
    transform = SageMix(num_classes=5, model=small_net())
    results = []
    for _ in range(2):
        torch.manual_seed(1)
        results.append(transform(*batch()))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_the_model_is_not_a_part_of_the_transform(small_net):
    transform = SageMix(num_classes=5, model=small_net())
    assert not list(transform.parameters())
    transform.eval()
    assert small_net().training


def test_shares_the_gradient(batch, small_net):
    model = small_net(dtype=torch.float64)
    x, y = batch(dtype=torch.float64)
    loss_fn = SoftTargetCrossEntropy()
    clean = torch.nn.functional.one_hot(y, 5).double()
    wanted = torch.autograd.grad(loss_fn(model(x), clean), model.head.bias)[0]
    images, labels = SageMix(num_classes=5, model=model, update_ratio=0.7)(x, y)
    loss_fn(model(images), labels).backward()
    logits_gradient = (model(images).softmax(dim=1) - labels).mean(dim=0)
    torch.testing.assert_close(model.head.bias.grad, 0.3 * wanted + 0.7 * logits_gradient)


@pytest.mark.parametrize("first", ["label", "index"])
def test_the_images_are_found_wherever_they_stand(batch, small_net, first):
    """torchvision takes the first tensor of a sample for its images."""
    x, y = batch()
    sample = {"label": y, "image": x, "index": torch.arange(6)}
    transform = SageMix(num_classes=5, model=small_net())
    torch.manual_seed(0)
    out = transform({first: sample[first], **sample})
    torch.manual_seed(0)
    images, labels = transform(x, y)
    assert torch.equal(out["image"], images)
    assert torch.equal(out["label"], labels)
    assert torch.equal(out["index"], torch.arange(6))
    assert type(out["image"]) is torch.Tensor


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.uint16])
def test_class_indices_of_other_types(batch, small_net, dtype):
    x, y = batch()
    results = []
    for labels in (y, y.to(dtype)):
        torch.manual_seed(0)
        results.append(SageMix(num_classes=5, model=small_net())(x, labels))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_its_settings_are_in_its_repr(small_net):
    said = repr(SageMix(alpha=0.7, num_classes=5, model=small_net(), update_ratio=0.6))
    for setting in ("alpha=0.7", "num_classes=5", "update_ratio=0.6", "model=SmallNet"):
        assert setting in said


class TestBadInput:
    def test_no_model(self, collated):
        with pytest.raises(RuntimeError, match=r"call attach\(model, loss_fn\) before"):
            SageMix(num_classes=5)(*collated)

    def test_uint8_images(self, collated, small_net):
        with pytest.raises(TypeError, match=r"needs floating-point images, got torch.uint8; put"):
            SageMix(num_classes=5, model=small_net())(collated[0].to(torch.uint8), collated[1])

    def test_one_image(self, batch, small_net):
        x, y = batch()
        with pytest.raises(ValueError, match=r"images must be \[B, C, H, W\], got \(3, 12, 9\)"):
            SageMix(num_classes=5, model=small_net())(x[0], y)

    def test_labels_out_of_range(self, batch, small_net):
        x, y = batch()
        with pytest.raises(ValueError, match=r"labels must be in \[0, 5\), got .* to 9"):
            SageMix(num_classes=5, model=small_net())(x, torch.full_like(y, 9))

    def test_another_number_of_classes(self, batch, small_net):
        with pytest.raises(ValueError, match=r"must return logits \(6, 8\), got \(6, 5\)"):
            SageMix(num_classes=8, model=small_net())(*batch())

    def test_several_batches(self, batch, small_net):
        x, y = batch()
        image = tv_tensors.Image(x)
        with pytest.raises(ValueError, match="mixes one batch of images"):
            SageMix(num_classes=5, model=small_net())(image, y, tv_tensors.Image(x))
