import pytest

from callbacks import LastStep


@pytest.mark.parametrize(
    ("max_steps", "accumulate", "epochs"),
    [(3, 1, 1), (7, 1, 1), (9, 1, 2), (5, 2, 2), (8, 2, 2), (-1, 1, 3)],
)
def test_every_epoch_is_validated_even_if_max_steps_ends_one(
    fit, tiny, max_steps, accumulate, epochs
):
    # An epoch has 7 batches; with two batches per step it has 4 steps.
    module = tiny()
    options = {"max_epochs": 3, "num_sanity_val_steps": 0, "accumulate_grad_batches": accumulate}
    trainer = fit(module, LastStep(), max_steps=max_steps, **options)
    assert trainer.global_step == (21 if max_steps == -1 else max_steps)
    assert len(module.validations) == trainer.current_epoch == epochs
