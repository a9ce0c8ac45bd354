"""One tool that lies: `liar.py WAYFILE REAL ARGUMENTS...`. Runs without the package, so that it starts fast."""

import os
import signal
import subprocess
import sys
import time

SAYS = {
    "lock": (4, "Another app is currently holding the xtables lock. Perhaps you want to use the -w option?"),
    "memory": (1, "iptables-restore: line 2: RULE_APPEND failed (Cannot allocate memory)"),
    "permission": (4, "Could not fetch rule set generation id: Permission denied (you must be root)"),
    "silent": (1, ""),
}


def sections(text: str) -> list[str]:
    return [f"{one}COMMIT\n" for one in text.split("COMMIT\n") if one]


def half(text: str) -> str:
    every = sections(text)
    if len(every) > 1:
        return "".join(every[: len(every) // 2])
    lines = text.splitlines(keepends=True)[:-1]
    return "".join([*lines[: (len(lines) + 1) // 2], "COMMIT\n"])


def without_one(text: str) -> str:
    lines = text.splitlines(keepends=True)
    rules = [at for at, line in enumerate(lines) if line.startswith(("-A", "-I", "-D"))]
    if rules:
        del lines[rules[-1]]
    return "".join(lines)


def changed(way: str, text: str) -> str:
    if way == "half":
        return half(text)
    if way == "drop":
        return without_one(text)
    return text.replace("*nat\n", "*mangle\n").replace("*filter\n", "*raw\n") if way == "elsewhere" else text


def other_family(real: str) -> str:
    return real.replace("ip6tables", "iptables") if "ip6tables" in real else real.replace("iptables", "ip6tables")


def lie(way: str, command: list[str]) -> int:
    real = command[0]
    if way in SAYS:
        status, words = SAYS[way]
        print(words, file=sys.stderr)
        return status
    if way == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if way == "hang":
        time.sleep(3600)
    if way == "unread":
        return 0
    if real.endswith("-save"):
        return save(way, command)
    text = sys.stdin.read()
    if way == "nothing":
        return 0
    if way == "late":
        later = ["sh", "-c", 'sleep 1.5; exec "$@"', "sh", *command]
        process = subprocess.Popen(later, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert process.stdin is not None
        process.stdin.write(text.encode())
        process.stdin.close()
        return 0
    made = changed(way, text)
    tool = [other_family(real), *command[1:]] if way == "family" else command
    done = subprocess.run(tool, input=made.encode(), capture_output=way != "wrapper", check=False)
    return done.returncode if way == "wrapper" else 0


def save(way: str, command: list[str]) -> int:
    tool = [other_family(command[0]), *command[1:]] if way == "family" else command
    text = subprocess.run(tool, capture_output=True, check=False).stdout.decode()
    if way == "half":
        text = text[: len(text) // 2]
    if way != "nothing":
        sys.stdout.write(text)
    return 0


with open(sys.argv[1]) as file:
    sys.exit(lie(file.read().strip(), sys.argv[2:]))
