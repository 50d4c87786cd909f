"""`run.py` on few synthetic images and without pictures."""

import datamodules.cifar10
import experiments.training.experiment
from datamodules.synthetic import synthetic_cifar10
from experiments.run import main

datamodules.cifar10.synthetic_cifar10 = lambda split, **_: synthetic_cifar10(
    split, per_class=200 if split == "train" else 30
)
experiments.training.experiment.write_pictures = lambda *_: None
main()
