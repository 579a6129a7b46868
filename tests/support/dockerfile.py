"""The Dockerfile as instructions, and its steps in roots of Debian's packages: `python -m tests.support.dockerfile`.

No container engine is needed: each stage is a folder that debootstrap fills, each RUN a shell in it by chroot, as root.
What an engine does beside, such as layers and the network of its own, is not tried. Pip and apt in the roots have this
machine's settings. Arguments are NAME=VALUE, as of `docker build --build-arg`, without any those of the small image.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import ROOT

PYTHON = "python3,python3-venv,python3-pip,python-is-python3,ca-certificates"  # what the image of Python has
SETTINGS = ("etc/apt", "etc/ssl", "etc/pip.conf", "etc/resolv.conf", "etc/hosts", "root/.config/pip")


def instructions() -> list[tuple[str, str]]:
    """(word, rest) of each instruction, without comments, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    words = (line.split(maxsplit=1) for line in text.splitlines() if line.strip())
    return [(word, rest) for word, rest in words]


def copy_context(target: Path) -> None:
    """What the build sees of the project: what .dockerignore lets in."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "**", "what is not named stays out"
    quiet = shutil.ignore_patterns("__pycache__")
    for name in (line[1:].rstrip("/") for line in lines if line.startswith("!")):
        source, copy = ROOT / name, target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, copy, ignore=quiet) if source.is_dir() else shutil.copy(source, copy)


class Stage:
    """A root and what its instructions have set."""

    def __init__(self, root: Path, arguments: dict[str, str]) -> None:
        self.root, self.arguments = root, arguments
        self.variables = {"PATH": "/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin", "HOME": "/root"}
        self.user, self.folder = "root", "/"

    def place(self, path: str) -> Path:
        """A path of the image on this machine."""
        return self.root / os.path.join(self.folder, path).lstrip("/")  # noqa: PTH118 - of the image

    def run(self, command: list[str], **more: str) -> None:
        variables = self.arguments | self.variables | more
        into = f"cd {shlex.quote(self.folder)} && exec {shlex.join(command)}"
        # --userspec by name: numbers of the root's own accounts.
        words = ["chroot", f"--userspec={self.user}", str(self.root), "/bin/sh", "-c", into]
        subprocess.run(words, env=variables, check=True)


def carry_out(arguments: dict[str, str], work: Path) -> Stage:
    """All steps; the last stage in the end, its settings as a container would have them."""
    base, stages = work / "base", {}
    subprocess.run(["debootstrap", "--variant=minbase", f"--include={PYTHON}", "bookworm", str(base)], check=True)
    for name in (*SETTINGS, *(one.lstrip("/") for one in os.environ.get("PIP_FIND_LINKS", "").split())):
        source, copy = Path("/", name), base / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        # Links too are copied as what they lead to; some of certificates lead nowhere.
        subprocess.run(["cp", "-rLT", str(source), str(copy)], stderr=subprocess.DEVNULL, check=False)
    context = work / "context"
    copy_context(context)
    stage = Stage(base, {})
    for word, rest in instructions():
        print(f"{word} {rest}", flush=True)
        if word == "FROM":
            name = rest.split()[-1] if " AS " in rest else "last"
            subprocess.run(["cp", "-a", "--reflink=auto", str(base), str(work / name)], check=True)
            stage = stages[name] = Stage(work / name, {})
        else:
            carry_out_one(stage, word, rest, context, stages, arguments)
    return stage


def carry_out_one(
    stage: Stage, word: str, rest: str, context: Path, stages: dict[str, Stage], arguments: dict[str, str]
) -> None:
    """One instruction behind FROM."""
    match word:
        case "ARG":
            name, _, default = rest.partition("=")
            stage.arguments[name] = arguments.get(name, default)
        case "ENV":
            for one in shlex.split(rest):
                name, _, value = one.partition("=")
                stage.variables[name] = value.replace("$PATH", stage.variables["PATH"])
        case "WORKDIR":
            stage.folder = rest
            stage.place(".").mkdir(parents=True, exist_ok=True)
        case "USER":
            stage.user, stage.variables["HOME"] = rest, f"/home/{rest}"
        case "COPY":
            origin = re.match(r"--from=(\w+) ", rest)
            *sources, target = rest.removeprefix(origin[0] if origin else "").split()
            for source in sources:
                path = stages[origin[1]].place(source) if origin else context / source
                goal = stage.place(target)
                goal.parent.mkdir(parents=True, exist_ok=True)
                subprocess.run(["cp", "-a", f"{path}/." if path.is_dir() else str(path), str(goal)], check=True)
        case "RUN":
            with mounted(stage.root) as links:
                stage.run(["/bin/sh", "-c", rest], **links)


@contextmanager
def mounted(root: Path) -> Iterator[dict[str, str]]:
    """The system's /proc in a root; yields pip's variables. Nothing of this machine is mounted: a root is deleted."""
    subprocess.run(["mount", "-t", "proc", "proc", str(root / "proc")], check=True)
    try:
        yield {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_"))}
    finally:
        subprocess.run(["umount", str(root / "proc")], check=True)


def main(arguments: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory(prefix="metricgold-image-") as work:
        stage = carry_out(arguments, Path(work))
        settings = dict(instructions())
        health = json.loads(settings["HEALTHCHECK"].partition("CMD ")[2])
        entry, words = (json.loads(settings[word]) for word in ("ENTRYPOINT", "CMD"))
        with mounted(stage.root):
            for command in (health, [*entry, *words], ["id", "-un"], ["sh", "-c", "touch here && git --version"]):
                print(f"in the image: {shlex.join(command)}", flush=True)
                stage.run(command)


if __name__ == "__main__":
    main(dict(word.split("=", 1) for word in sys.argv[1:]) or {"EXTRAS": ""})
