class LossFile:
    """Columns: stage, step of the run, label of the loss, its value."""

    def __init__(self, config, facts):
        self.file = config.file

    def on_train_start(self, run):
        path = run.out / self.file
        lines = path.read_text().splitlines() if path.exists() else []
        # After a resume, steps behind the checkpoint are taken once more.
        kept = [line for line in lines[1:] if int(line.split(",")[1]) <= run.step]
        if run.rank == 0:
            path.write_text("\n".join(["stage,step,loss,value", *kept]) + "\n")

    def on_step_end(self, run, metrics):
        if run.rank == 0:
            with open(run.out / self.file, "a") as file:
                file.writelines(
                    f"{run.stage},{run.step},{label},{value}\n" for label, value in metrics["loss"].items()
                )
