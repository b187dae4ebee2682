"""Train the network of the formula sheet on MNIST: ``python train.py --help`` lists the options.

``python -m manualgrad train`` runs the same command, manualgrad/training/command.py, from an installed package.
"""

import signal

if __name__ == "__main__":
    handler = signal.getsignal(signal.SIGINT)
    if handler == signal.default_int_handler:  # Ctrl-C during the imports ends the process without a traceback
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from manualgrad.training.command import main

    signal.signal(signal.SIGINT, handler)
    raise SystemExit(main())
