import copy
import os
import socket
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_modules import ARCHITECTURES
from lightning_modules.classifier import ImageClassifier
from lightning_modules.sharpness import (
    Ascent,
    asam_perturbation,
    asam_scales,
    frozen_statistics,
    sam_perturbation,
)

# Large radii, so that the gradient clearly changes.
RHO = {"sam": 0.5, "asam": 2.0}
FORMATS = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.SiLU(),
        nn.Conv2d(4, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def make_batches(count=6):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 16, 3, 8, 8, generator=generator)
    labels = torch.randint(10, (count, 16), generator=generator)
    return list(zip(images, labels, strict=True))


def fit(network, batches, sharpness, **trainer):
    """Train two epochs by ImageClassifier with a constant learning rate."""
    module = ImageClassifier(
        network,
        schedule="step",
        milestones=(),
        sharpness=sharpness,
        rho=RHO.get(sharpness, 0.05),
        fused=trainer.pop("fused", False),
    )
    options = {"max_epochs": 2, "logger": False, "enable_checkpointing": False,
               "enable_progress_bar": False, "enable_model_summary": False,
               "use_distributed_sampler": False}  # fmt: skip
    lightning = Trainer(accelerator="cpu", **options | trainer)
    lightning.fit(module, DataLoader(batches, batch_size=None))
    return module, lightning


def perturbation(kind, network, gradients):
    """Return each parameter's perturbation by the papers' formulas, over one flat vector."""
    names = [name for name, _ in network.named_parameters()]
    w = torch.cat([p.detach().flatten() for p in network.parameters()]).double()
    g = torch.cat([x.flatten() for x in gradients]).double()
    unscaled = [n.endswith("bias") for n in names]
    sizes = [p.numel() for p in network.parameters()]
    bias = torch.repeat_interleave(torch.tensor(unscaled), torch.tensor(sizes))
    t = torch.ones_like(w) if kind == "sam" else torch.where(bias, 1.0, w.abs() + 0.01)
    e = RHO[kind] * t**2 * g / (t * g).norm()
    return [x.view_as(p) for x, p in zip(e.float().split(sizes), network.parameters(), strict=True)]


def two_passes(network, kind, loss_of, scale=lambda loss: loss):
    """Add the gradient at w + e to `grad`; keep the weights and the buffers of the first pass."""
    parameters = list(network.parameters())
    gradients = torch.autograd.grad(scale(loss_of()), parameters)
    before = copy.deepcopy(network.state_dict())
    with torch.no_grad():
        for p, e in zip(parameters, perturbation(kind, network, gradients), strict=True):
            p.add_(e)
    scale(loss_of()).backward()
    network.load_state_dict(before)


def train_plainly(
    network, batches, kind, precision="32-true", clip=None, accumulate=1, scaler=None
):
    network.train()
    parameters = list(network.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=5e-4)
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)

    mixed = FORMATS.get(precision)
    for _ in range(2):
        for position, (images, labels) in enumerate(batches, start=1):

            def loss_of(images=images, labels=labels):
                with torch.autocast("cpu", mixed) if mixed else nullcontext():
                    return F.cross_entropy(network(images), labels) / accumulate

            two_passes(network, kind, loss_of, scaler.scale)
            if position % accumulate and position != len(batches):
                continue
            scaler.unscale_(optimizer)
            if clip is not None:
                nn.utils.clip_grad_norm_(parameters, clip)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()


def assert_same_weights(network, other, rtol, atol):
    torch.testing.assert_close(network.state_dict(), other.state_dict(), rtol=rtol, atol=atol)


def furthest(network, other):
    pairs = zip(network.parameters(), other.parameters(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sam_moves_all_weights_together_by_rho_along_the_gradient(dtype):
    gradients = [torch.tensor([3.0, 0.0], dtype=dtype), torch.tensor([[-4.0]], dtype=dtype)]
    expected = [torch.tensor([0.3, 0.0], dtype=dtype), torch.tensor([[-0.4]], dtype=dtype)]
    torch.testing.assert_close(sam_perturbation(gradients, rho=0.5), expected)


def test_a_norm_above_the_largest_number_of_fp16_is_finite():
    gradients = [torch.full((500,), 4000.0).half(), torch.full((500,), -4000.0).half()]
    e = torch.cat(sam_perturbation(gradients, rho=0.5))
    assert e.float().norm().item() == pytest.approx(0.5, rel=1e-2)


def test_asam_measures_the_step_in_units_of_each_weight():
    parameters = {"weight": torch.tensor([1.0, -2.0]), "bias": torch.tensor([3.0])}
    gradients = [torch.tensor([1.0, 0.5]), torch.tensor([-2.0])]
    scales = asam_scales(parameters, eta=0.5)
    torch.testing.assert_close(scales, [torch.tensor([1.5, 2.5]), torch.tensor([1.0])])
    norm = (1.5**2 + 1.25**2 + 2.0**2) ** 0.5
    expected = [torch.tensor([2.25, 3.125]) / norm, torch.tensor([-2.0]) / norm]
    torch.testing.assert_close(asam_perturbation(gradients, scales, rho=1.0), expected)


def test_asam_is_invariant_to_rescaling_of_the_weights():
    w, g = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    here = asam_perturbation([g], asam_scales({"weight": w}, eta=0.0), 0.5)[0]
    there = asam_perturbation([g / 4], asam_scales({"weight": 4 * w}, eta=0.0), 0.5)[0]
    torch.testing.assert_close(there, 4 * here)


def test_without_a_gradient_nothing_moves():
    zeros = [torch.zeros(3), torch.zeros(2, 2)]
    for e in (sam_perturbation(zeros, 0.5), asam_perturbation(zeros, zeros, 0.5)):
        torch.testing.assert_close(e, zeros, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["sam", "asam"])
@pytest.mark.parametrize(
    ("precision", "clip", "accumulate"),
    [("32-true", None, 1), ("32-true", 0.3, 1), ("32-true", None, 4), ("32-true", 0.3, 2),
     ("bf16-mixed", None, 1), ("bf16-mixed", 0.3, 4)],
)  # fmt: skip
def test_training_equals_a_plain_loop_of_two_passes(kind, precision, clip, accumulate):
    batches, network = make_batches(), make_network()
    fit(network, batches, kind, precision=precision, gradient_clip_val=clip,
        accumulate_grad_batches=accumulate)  # fmt: skip
    plain = make_network()
    train_plainly(plain, batches, kind, precision, clip, accumulate)
    tolerance = 1e-5 if precision == "32-true" else 5e-4
    assert_same_weights(network, plain, rtol=tolerance, atol=tolerance)

    without = make_network()
    fit(without, batches, "none", precision=precision, gradient_clip_val=clip,
        accumulate_grad_batches=accumulate)  # fmt: skip
    assert furthest(network, without) > 5 * tolerance


@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_with_a_fused_optimizer_it_is_the_same(precision, clip):
    batches, network, plain = make_batches(), make_network(), make_network()
    fit(network, batches, "sam", precision=precision, gradient_clip_val=clip, fused=True)
    train_plainly(plain, batches, "sam", precision, clip)
    assert_same_weights(network, plain, rtol=5e-4, atol=5e-4)


def test_a_fused_optimizer_is_refused_in_fp16():
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.raises(MisconfigurationException, match=r"^fused must be False in 16-mixed"):
        fit(make_network(), make_batches(), "sam", fused=True, plugins=[plugin])


def test_gradients_are_clipped_by_value():
    batches, network, plain = make_batches(1), make_network(), make_network()
    fit(network, batches, "none", max_epochs=1, gradient_clip_val=0.01,
        gradient_clip_algorithm="value")  # fmt: skip
    F.cross_entropy(plain(batches[0][0]), batches[0][1]).backward()
    nn.utils.clip_grad_value_(plain.parameters(), 0.01)
    torch.optim.SGD(plain.parameters(), lr=0.1, weight_decay=5e-4).step()
    assert_same_weights(network, plain, rtol=1e-5, atol=1e-5)


def test_the_second_pass_uses_the_perturbed_weights_despite_autocasts_cache():
    (images, labels), network = make_batches(1)[0], make_network()
    module = ImageClassifier(network, sharpness="sam", rho=RHO["sam"])
    with torch.autocast("cpu", torch.bfloat16):
        loss = module.training_step((images, labels), 0)
    with torch.autocast("cpu", torch.bfloat16):  # with the weights still perturbed
        expected = module.loss(network(images), labels)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ["sam", "asam"])
@pytest.mark.parametrize(("init_scale", "accumulate"), [(2.0**10, 1), (2.0**24, 1), (2.0**10, 2)])
def test_under_a_loss_scaler_it_skips_and_climbs_as_a_plain_loop_does(kind, init_scale, accumulate):
    batches, network, plain = make_batches(), make_network(), make_network()
    ours, theirs = (torch.amp.GradScaler("cpu", init_scale=init_scale) for _ in range(2))
    fit(network, batches, kind, plugins=[MixedPrecision("16-mixed", "cpu", ours)],
        gradient_clip_val=0.3, accumulate_grad_batches=accumulate)  # fmt: skip
    train_plainly(plain, batches, kind, "16-mixed", 0.3, accumulate, theirs)
    assert ours.get_scale() == theirs.get_scale()
    assert (ours.get_scale() < init_scale) == (init_scale > 2**20)
    assert_same_weights(network, plain, rtol=5e-4, atol=5e-4)
    assert all(buffer.isfinite().all() for buffer in network.buffers())


def test_batchnorm_sees_each_batch_once():
    (images, labels), network, plain = make_batches(1)[0], make_network(), make_network()
    fit(network, [(images, labels)], "sam", max_epochs=1)
    plain(images)
    for buffer, expected in zip(network.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(buffer, expected, rtol=0, atol=0)


def test_frozen_statistics_leave_the_output_and_come_back():
    network, images = make_network(), make_batches(1)[0][0]
    before = copy.deepcopy(network.state_dict())
    with frozen_statistics(network):
        frozen = network(images)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(network(images), frozen, rtol=0, atol=0)
    assert network[1].num_batches_tracked == 1


def test_the_logged_loss_is_measured_at_the_weights():
    batches, network = make_batches(1), make_network()
    images, labels = batches[0]
    loss = F.cross_entropy(make_network()(images), labels)
    _, trainer = fit(network, batches, "sam", max_epochs=1)
    torch.testing.assert_close(trainer.callback_metrics["train/loss"], loss.detach())


def test_a_compiled_network_learns_the_same():
    batches, network, plain = make_batches(2), make_network(), make_network()
    network.compile(backend="aot_eager")
    fit(network, batches, "sam", precision="bf16-mixed")
    train_plainly(plain, batches, "sam", "bf16-mixed")
    assert_same_weights(network, plain, rtol=5e-4, atol=5e-4)


def test_a_checkpoint_from_before_it_existed_loads(tmp_path):
    module = ARCHITECTURES["sam_resnet"](base_width=4, blocks=(1, 1, 1))
    trainer = Trainer(logger=False, enable_progress_bar=False, accelerator="cpu")
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "module.ckpt")
    checkpoint = torch.load(tmp_path / "module.ckpt", weights_only=True)
    for name in ("sharpness", "rho"):
        del checkpoint["hyper_parameters"][name]
    torch.save(checkpoint, tmp_path / "module.ckpt")
    loaded = type(module).load_from_checkpoint(tmp_path / "module.ckpt", weights_only=True)
    assert loaded.hparams["sharpness"] == "none"


@pytest.mark.parametrize("rho", [0.0, -1.0, float("inf"), float("nan")])
def test_a_neighbourhood_without_a_size_is_refused(rho):
    with pytest.raises(ValueError, match=rf"^rho must be above 0 and finite, got {rho}$"):
        ImageClassifier(make_network(), sharpness="sam", rho=rho)


def test_an_unknown_kind_is_refused():
    message = r"^sharpness must be 'none', 'sam' or 'asam', got 'gam'$"
    with pytest.raises(ValueError, match=message):
        Ascent("gam", 0.05)


def test_each_of_several_devices_climbs_by_its_own_share(tmp_path):
    """m-sharpness of Foret et al.: each device uses its own m images; gradients are averaged."""
    subprocess.run([sys.executable, __file__, str(tmp_path)], check=True, timeout=600)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    weights = dict(make_network().named_parameters())
    for name in weights:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)

    networks, batches = [make_network(), make_network()], make_batches()
    for network in networks:
        network.train()

    def loss_of(network, images, labels):
        return F.cross_entropy(network(images), labels)

    optimizers = [torch.optim.SGD(x.parameters(), 0.1, 0.9, weight_decay=5e-4) for x in networks]
    for _ in range(2):
        for images, labels in batches:
            for rank, network in enumerate(networks):
                own = partial(loss_of, network, images[rank::2], labels[rank::2])
                two_passes(network, "sam", own)
            for p, q in zip(*(x.parameters() for x in networks), strict=True):
                p.grad = q.grad = (p.grad + q.grad) / 2
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    for name, expected in networks[0].named_parameters():
        torch.testing.assert_close(first[name], expected.detach(), rtol=1e-5, atol=1e-5)


def train_as_one_of_two(rank, folder):
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2"}
    rank_zero_only.rank = rank
    batches = [(images[rank::2], labels[rank::2]) for images, labels in make_batches()]
    network = make_network()
    fit(network, batches, "sam", devices=2, strategy="ddp")
    torch.save(network.state_dict(), folder / f"{rank}.pt")


def main():
    """Train in two processes, which are forked after all imports to save time."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    children = []
    for rank in range(2):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                train_as_one_of_two(rank, Path(sys.argv[1]))
                code = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(code)
        children.append(pid)
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children))


if __name__ == "__main__":
    main()
