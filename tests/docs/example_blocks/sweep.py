import milepost, optuna

def objective(trial: optuna.Trial) -> float:
    hp = {"learning_rate": trial.suggest_float("learning_rate", 1e-6, 1e-3, log=True), "epochs": 3}
    with milepost.start("bert-lr{learning_rate:.0e}", hyperparameters=hp, group="lr-sweep") as run:
        for epoch in range(hp["epochs"]):
            loss = train_epoch(hp)
            run.log({"val/loss": loss}, epoch)
            trial.report(loss, epoch)
            if trial.should_prune():
                run.end(status="stopped", reason="pruned")
                raise optuna.TrialPruned()
        return run.summary["val/loss"].min

optuna.create_study(storage="sqlite:///study.db", study_name="lr", load_if_exists=True).optimize(objective, 20)

store = milepost.open(".")
sweep = store.runs("group:lr-sweep")
sweep                                                    # table: state, learning_rate, best val/loss, time; only what differs
best, worst = sweep.best("val/loss"), sweep.worst("val/loss")
