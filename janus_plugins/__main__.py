"""Let `python -m janus_plugins` and launchers (torchrun -m, deepspeed --module) start the command line."""

from janus_plugins.cli import main

if __name__ == "__main__":
    main()
