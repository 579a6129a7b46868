"""Many who move aliases at once, and some who are killed at it: run as a program of its own, so that it can fork.

python -m tests.registry.crowd crowd PROCESSES THREADS CALLS | kills COUNT; MLFLOW_TRACKING_URI names the store. Prints
what went wrong as JSON; MLflow is opened by the children alone.
"""

import json
import logging
import os
import random
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from metricgold.params.sections import Promote
from metricgold.registry.mlflow_client import NAME, open_client, set_alias
from metricgold.registry.promotion import MOVING, other_flags, promote, read_history, rollback

GATE = Promote(max_abs_rel=0.25, max_regression=None)
EXPECTED = ("not promoted: ", "the champion was ", "no version of metricgold has the alias ")  # it begins with none


def add_version(client, abs_rel):
    """A version without files, as candidate; returns its number."""
    run = client.create_run("0").info.run_id
    client.log_metric(run, "abs_rel", abs_rel)
    version = client.create_model_version(NAME, str(Path.cwd()), run, tags={"model_digest": run})
    set_alias(client, "candidate", version.version)
    return str(version.version)


def one_of_many(seed, calls):
    """Registers, promotes and rolls back at random; (word, version, outcome) of each call.

    The last two register a good version and promote: the last of all who promote finds one that passes.
    """
    rng = random.Random(seed)
    words = rng.choices(("register", "promote", "rollback"), (2, 4, 1), k=calls - 2)
    told = []
    for word, worst in [*((word, 0.3) for word in words), ("register", 0.25), ("promote", None)]:
        try:
            if word == "register":
                with open_client() as client:
                    told.append((word, add_version(client, rng.uniform(0.15, worst)), "made"))
            else:
                answer = promote(GATE) if word == "promote" else rollback()
                moved = answer.get("passed", True) and answer["previous"] != answer["version"]
                told.append((word, answer["version"], "moved" if moved else "stayed"))
        except ValueError as error:
            told.append((word, None, "refused" if str(error).startswith(EXPECTED) else f"error {error}"))
        except Exception as error:
            told.append((word, None, f"error {type(error).__name__}: {error}"))
    return told


def in_child(work, *words):
    """What `work` returns in a forked process; a call gives its pid and the end of a pipe."""
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        return child, read
    try:
        os.close(read)
        with os.fdopen(write, "w") as pipe:
            pipe.write(json.dumps(work(*words)))
    finally:
        os._exit(0)


def answer_of(child, read):
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else None


def prepare(versions):
    with open_client() as client:
        client.create_registered_model(NAME)
        for _ in range(versions):
            add_version(client, 0.2)
            promote(GATE)


def many(seed, threads, calls):
    with ThreadPoolExecutor(threads) as pool:
        outcomes = pool.map(one_of_many, [seed * 100 + i for i in range(threads)], [calls] * threads)
        return [one for told in outcomes for one in told]


def state():
    with open_client() as client:
        model = client.get_registered_model(NAME)
        versions = [str(one.version) for one in client.search_model_versions(f"name = '{NAME}'", max_results=10_000)]
        history = read_history(client)
        # A flag of someone who was killed is not a fault: whoever looks takes it down, and a server may write it late.
        left = [*other_flags(client, "", {}), *(key for key in model.tags if key == MOVING)]
        passing = {
            version
            for version in {move.version for move in history}
            if client.get_run(client.get_model_version(NAME, version).run_id).data.metrics["abs_rel"] <= 0.25
        }
    return {
        "aliases": {alias: str(version) for alias, version in model.aliases.items()},
        "left": left,
        "versions": versions,
        "moves": [[one.number, one.command, one.version, one.instead_of] for one in history],
        "champions_that_failed": sorted({one.version for one in history} - passing),
    }


def faults_of(now):
    """What of a state is not as it must be."""
    faults = [f"left: {now['left']}"] if now["left"] else []
    faults += [f"failed the gate: {now['champions_that_failed']}"] if now["champions_that_failed"] else []
    champion, previous = None, None
    for i, (number, command, version, instead_of) in enumerate(now["moves"], 1):
        if (number, instead_of) != (i, champion) or (command == "rollback" and version != previous):
            faults.append(
                f"move {number}, {command} to {version} instead of {instead_of}, after {champion}, {previous}"
            )
        champion, previous = version, instead_of if instead_of else previous
    if (now["aliases"].get("champion"), now["aliases"].get("previous")) != (champion, previous):
        faults.append(f"aliases {now['aliases']} after a history that ends with {champion}, {previous}")
    return faults


def crowd(processes, threads, calls):
    answer_of(*in_child(prepare, 0))
    children = [in_child(many, seed, threads, calls) for seed in range(processes)]
    told = [one for child in children for one in answer_of(*child)]
    now = answer_of(*in_child(state))
    faults = faults_of(now) + [outcome for _, _, outcome in told if outcome.startswith("error")]
    made = [version for word, version, _ in told if word == "register" and version]
    if sorted(made) != sorted(now["versions"]):
        faults.append(f"versions told {sorted(made)}, found {sorted(now['versions'])}")
    moved = sum(outcome == "moved" for _, _, outcome in told)
    if moved != len(now["moves"]):
        faults.append(f"{moved} moves told, {len(now['moves'])} in the history")
    refused = sum(outcome == "refused" for _, _, outcome in told)
    return {"faults": faults, "calls": len(told), "versions": len(made), "moves": moved, "refused": refused}


def call(word):
    return (promote(GATE, version="3") if word == "promote" else rollback())["version"]


def kills(count, seed=0):
    rng = random.Random(seed)
    answer_of(*in_child(prepare, 3))
    start = time.monotonic()
    answer_of(*in_child(call, "rollback"))
    usual_s, faults, killed = time.monotonic() - start, [], 0
    for number in range(count):
        word = rng.choice(("promote", "rollback"))
        child, read = in_child(call, word)
        time.sleep(rng.uniform(0, 1.1 * usual_s))
        os.kill(child, signal.SIGKILL)
        killed += answer_of(child, read) is None
        again = answer_of(*in_child(call, word))
        now = answer_of(*in_child(state))
        faults += [f"kill {number}: {fault}" for fault in faults_of(now)]
        if now["aliases"]["champion"] != again:
            faults.append(f"kill {number}: {word} told {again}, champion is {now['aliases']['champion']}")
    return {"faults": faults, "kills": killed, "moves": len(now["moves"])}


if __name__ == "__main__":
    import mlflow.store.model_registry.sqlalchemy_store
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 - once, before the forks

    logging.getLogger("mlflow").setLevel(logging.CRITICAL)
    logging.getLogger("alembic").setLevel(logging.CRITICAL)
    print(json.dumps({"crowd": crowd, "kills": kills}[sys.argv[1]](*map(int, sys.argv[2:]))))
