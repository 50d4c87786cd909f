import csv
import re

import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks import ParameterBudget

# Parameters of Tiny: convolution 112, BatchNorm 8, linear layer 195.
COUNT = 315


def test_a_network_on_the_limit_is_trained(fit, tiny):
    assert fit(tiny(), ParameterBudget(limit=COUNT)).global_step == 14


def test_one_parameter_too_many_is_refused_before_the_first_batch(fit, tiny):
    module = tiny()
    message = "315 trainable parameters exceed the budget of 314 by 1"
    with pytest.raises(MisconfigurationException, match=f"^{message}$"):
        fit(module, ParameterBudget(limit=COUNT - 1))
    assert module.rates == []


def test_the_rejection_names_a_width_that_fits_if_known(fit, tiny):
    class Growing(tiny):
        def fitting_widths(self, budget):
            return f"width <= 3 fits ({budget - 1:,})"

    with pytest.raises(MisconfigurationException, match=re.escape("by 115; width <= 3 fits (199)")):
        fit(Growing(), ParameterBudget(limit=200))


def test_frozen_parameters_do_not_count(fit, tiny):
    module = tiny()
    module.network[0].weight.requires_grad_(False)
    assert fit(module, ParameterBudget(limit=COUNT - 108)).global_step == 14


def test_over_the_limit_it_can_warn_and_train(fit, tiny):
    with pytest.warns(UserWarning, match="315 trainable parameters exceed the budget of 300 by 15"):
        trainer = fit(tiny(), ParameterBudget(limit=300, action="warn"))
    assert trainer.global_step == 14


def test_evaluation_of_a_large_network_is_not_its_business(fit, tiny, val_batches):
    module = tiny()
    budget = ParameterBudget(limit=COUNT)
    trainer = fit(module, budget)
    budget.limit = 1
    assert trainer.validate(module, val_batches, verbose=False)


def test_count_and_utilisation_are_hyper_parameters_and_no_metrics(fit, tiny, tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    logger.log_hyperparams({"lr": 0.1})
    fit(tiny(), ParameterBudget(limit=1000), logger=logger)
    hparams = yaml.safe_load((tmp_path / "hparams.yaml").read_text())
    assert hparams == {"lr": 0.1, "parameters": COUNT, "budget_used": 0.315}
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert "parameters" not in rows[0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"limit": 0}, "limit must be 1 or more, got 0"),
        ({"action": "ignore"}, "action must be 'refuse' or 'warn', got 'ignore'"),
    ],
)
def test_wrong_arguments_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        ParameterBudget(**wrong)
