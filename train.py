"""Train the network of the formula sheet on MNIST: ``python train.py --help`` lists the options.

``python -m manualgrad train`` runs the same command, manualgrad/training/command.py, from an installed package.
"""

from manualgrad.training.command import main

if __name__ == "__main__":
    raise SystemExit(main())
