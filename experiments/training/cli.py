"""The command line: flags and presets in, a trainer, a network and its data out."""

import warnings
from typing import Any, TextIO

import yaml
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateMonitor, Timer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks import (
    EMA,
    SWA,
    BestCheckpoint,
    Divergence,
    LastCheckpoint,
    LastStep,
    Lookahead,
    OnNaN,
    ParameterBudget,
    RandomState,
)
from datamodules import CIFAR10DataModule
from experiments.console import UserError
from experiments.presets import CONFIGS, EXPERIMENTS
from experiments.training.combinations import (
    changes,
    refuse_combinations,
    suit_data_set,
    suit_machine,
)
from experiments.training.devices import check_devices
from experiments.training.display import Display
from experiments.training.fit_budget import FittedBudget, fit_to_budget
from experiments.training.launch import Launch, claim_folder
from experiments.training.loggers import WandbMode, csv_logger, wandb_logger
from experiments.training.parser import Parser
from experiments.training.processes import is_first
from experiments.training.quiet import quiet
from experiments.training.teachers import (
    Teacher,
    as_list,
    check_images,
    distillation,
    open_teacher,
    refuse_own_checkpoint,
    same_folders,
)
from experiments.training.trainer import Trainer, read_checkpoint
from experiments.training.trainer_flags import refuse_monitors, refuse_trainer_flags, try_trainer
from lightning_modules.distillation import Distillation

#: flag -> callback, and whether it is on by default; Lookahead comes before EMA, which averages
#: the weights after Lookahead's step
SWITCHES: dict[str, tuple[type[Callback], bool]] = {
    "budget": (ParameterBudget, True),
    "lookahead": (Lookahead, False),
    "ema": (EMA, False),
    "swa": (SWA, False),
}


def arguments_of(launch: Launch) -> list[str]:
    """Arguments of the full parser: `--quick` begins with the small settings."""
    if not launch.quick:
        return launch.arguments
    small = [f"--model.{name}={x}" for name, x in EXPERIMENTS[launch.arch].quick.items()]
    return ["--config", str(CONFIGS / "quick.yaml"), *small, *launch.arguments]


class ExperimentCLI(LightningCLI):
    """`LightningCLI` for one architecture with its preset and its callbacks.

    `--config` files and flags replace the preset's settings, in the order of the command line.
    UserError for a mistake.
    """

    model: Any
    datamodule: CIFAR10DataModule
    trainer: Trainer
    fitted: FittedBudget | None = None
    teachers: list[Teacher]
    lock: TextIO | None = None  # of the run folder, until this process ends

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        quiet()
        try:
            super().__init__(
                EXPERIMENTS[launch.arch],
                CIFAR10DataModule,
                save_config_callback=None,
                trainer_class=Trainer,
                trainer_defaults={
                    "max_epochs": 200,
                    "devices": 1,
                    "benchmark": True,
                    "log_every_n_steps": 50,
                    "enable_model_summary": False,
                },
                seed_everything_default=0,
                parser_class=Parser,
                parser_kwargs={
                    "prog": "run.py",
                    "description": f"Train and test {launch.arch}.",
                    "allow_abbrev": False,
                    "default_config_files": [str(CONFIGS / f"{launch.arch}.yaml")],
                },
                args=arguments_of(launch),
                run=False,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
            )
        except (ValueError, MisconfigurationException) as error:
            assert isinstance(self.parser, Parser)
            raise UserError(self.parser.clear(str(error))) from None

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        assert isinstance(args, list)
        Parser.given = args
        self.config = parser.parse_args(args)
        try:
            refuse_trainer_flags(self.config.as_dict())
            given = {text.partition("=")[0] for text in args}
            suit_data_set(self.config, given)
            refuse_combinations(self.config, given)
            if self.config.fit_budget is not None:
                self.fitted = fit_to_budget(self.launch.arch, self.config, self.launch.arguments)
            suit_machine(self.config)
            self._refuse_changes()
        except (ValueError, MisconfigurationException) as error:
            parser.error(str(error))

    def _refuse_changes(self) -> None:
        """Reject changed settings of a resumed run, unless `--allow-changes` is set."""
        if not self.launch.resumes:
            return
        before = yaml.safe_load((self.launch.folder / "config.yaml").read_text("utf-8"))
        teachers = before.get("teacher") or []
        if same_folders(self.config.teacher, teachers):
            self.config.teacher = teachers  # the same folders, with their digests
        now = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        if changed := changes(before, now):
            if not self.config.allow_changes:
                raise ValueError(
                    f"{'; '.join(changed)}: the run began with other values. Leave these flags "
                    "out, or add --allow-changes"
                )
            if is_first():
                print(f"Changed settings: {'; '.join(changed)}")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--arch", type=str, default=self.launch.arch, help="Name of the network and its preset."
        )
        parser.add_argument("--name", type=str | None, help="Name of the run's folder.")
        parser.add_argument("--output", type=str, default="runs", help="Folder of all run folders.")
        parser.add_argument(
            "--seed", type=int, default=0, help="Seed of initialisation, order and augmentation."
        )
        parser.add_argument(
            "--quick",
            action="store_true",
            help="Two minutes or less: a small network, a short schedule, and synthetic images if "
            "the data set is missing.",
        )
        parser.add_argument(
            "--test",
            type=bool,
            default=True,
            help="Read the test set once, after training; use false for runs that you choose from.",
        )
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            help="Checkpoint to resume from; `last` is the newest unfinished run's.",
        )
        parser.add_argument(
            "--allow-changes",
            action="store_true",
            help="Resume a run with other settings than it began with.",
        )
        parser.add_argument(
            "--on_nan",
            type=OnNaN,
            default="stop",
            help="At a loss that is not finite: stop, or rollback to last.ckpt with half the rate.",
        )
        parser.add_argument(
            "--wandb", type=WandbMode, default="offline", help="Log to Weights & Biases."
        )
        parser.add_argument(
            "--fit_budget",
            type=float | None,
            help="Choose the largest network within this number of parameters.",
        )
        parser.add_argument(
            "--teacher",
            type=str | list[str] | None,
            help="Folder of a finished run or of an exported network to learn from, or a list.",
        )
        parser.add_class_arguments(Distillation, "distill", instantiate=False, skip={"teachers"})
        for key, (callback, default) in SWITCHES.items():
            summary = str(callback.__doc__).partition("\n")[0]
            parser.add_argument(f"--{key}", type=bool | callback, default=default, help=summary)
        parser.link_arguments("seed", "seed_everything")
        parser.link_arguments("seed", "data.seed")

    def before_instantiate_classes(self) -> None:
        self.config.allow_changes = False  # for this launch only
        self.resolved = self.parser.dump(self.config, skip_link_targets=False, skip_none=False)

    def instantiate_classes(self) -> None:
        self.teachers = [open_teacher(name) for name in as_list(self.config.teacher)]
        if self.teachers:
            # With their digests: a resumed run must have the same teachers.
            self.config.teacher = [str(teacher) for teacher in self.teachers]
            self.before_instantiate_classes()
        super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        # All mistakes are found here, before the run writes its first file.
        trial = try_trainer(self.config_init.trainer.as_dict(), Parser.given)
        check_devices(trial, self.config.data.batch_size, self.config.trainer.sync_batchnorm)
        given = self.config_init.trainer.callbacks or []  # a file may contain a single one
        given = given if isinstance(given, list) else [given]
        refuse_monitors(given, self._validated(), self.config.data.val_fraction > 0)
        switched = self._switched()
        trial.callbacks += switched
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the real Trainer warns again
            for callback in switched:
                callback.setup(trial, self.model, "fit")
        if is_first():
            self.datamodule.prepare_data()
            check_images(self.teachers, self.datamodule)
        if self.teachers:
            self.model.learn_from(distillation(self.teachers, self.config.distill.as_dict()))
        keep_steps = 0
        if self.launch.checkpoint is not None:
            refuse_own_checkpoint(self.teachers, self.launch.checkpoint)
            checkpoint = read_checkpoint(self.launch.checkpoint, self.model)
            keep_steps = checkpoint["global_step"] if self.launch.resumes else 0
        if is_first():
            self.launch, self.lock = claim_folder(self.launch)
        folder = self.launch.folder
        loggers = [
            csv_logger(folder, keep_steps),
            wandb_logger(folder, self.config.wandb, yaml.safe_load(self.resolved)),
        ]
        callbacks = [*given, *self._callbacks(switched)]
        trainer = super().instantiate_trainer(
            default_root_dir=str(folder),
            logger=[x for x in loggers if x],
            callbacks=callbacks,
            max_time=None,  # our Timer ends a run between two epochs
        )
        assert isinstance(trainer, Trainer)
        return trainer

    def _validated(self) -> list[str]:
        """Suffixes of the validated weights; the raw weights come first."""
        return [""] + [f"_{key}" for key in ("ema", "swa") if self.config_init[key]]

    def _switched(self) -> list[Callback]:
        """The callbacks of `SWITCHES` that are on."""
        values = {key: self.config_init[key] for key in SWITCHES}
        return [SWITCHES[key][0]() if x is True else x for key, x in values.items() if x]

    def _callbacks(self, switched: list[Callback]) -> list[Callback]:
        folder = self.launch.folder
        shown = self.config.trainer.enable_progress_bar is not False
        best = [BestCheckpoint(str(folder), suffix) for suffix in self._validated()]
        return [
            RandomState(),
            *switched,
            LearningRateMonitor(logging_interval="step"),
            Timer(self.config_init.trainer.max_time, interval="epoch"),
            LastStep(),
            *([Display(self.launch.arch)] if shown else []),
            Divergence(str(folder), self.config.on_nan),
            *(best if self.config.data.val_fraction else []),
            # After the best ones, because it contains their state.
            LastCheckpoint(str(folder)),
        ]
