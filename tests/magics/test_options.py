"""What is written after a magic, and what it means; nothing here runs a kernel."""

from __future__ import annotations

import builtins
import doctest
from typing import Any

import pytest
from IPython.core.error import UsageError

import flyte_jupyter as flyte
from flyte_jupyter import errors, magics
from flyte_jupyter.client import outputs
from flyte_jupyter.core.frames import Output
from flyte_jupyter.magics import directive, options, settings


def task_options(shell: Any, line: str) -> Any:
    return options.parse(shell, shell.find_line_magic("flyte_task"), line)


def run(shell: Any, cell: str) -> BaseException | None:
    done = shell.run_cell(cell)
    error: BaseException | None = done.error_before_exec or done.error_in_exec
    return error


@pytest.mark.parametrize("module", [options, directive])
def test_the_examples_are_right(module: Any) -> None:
    failed, tried = doctest.testmod(module)
    vars(builtins).pop("_", None)  # doctest leaves it there, and IPython takes it for somebody's translations
    assert tried
    assert not failed


def test_names_are_joined_by_commas_or_by_repetition(shell: Any) -> None:
    given = task_options(shell, "gpu -i a,b --in c -o y -o 'z=local'")
    assert (given.pool, given.push) == ("gpu", ["a", "b", "c"])
    assert given.pull == [("y", "y"), ("z", "local")]


def test_two_lines_share_no_names(shell: Any) -> None:
    task_options(shell, "-i a")
    assert task_options(shell, "").push == []


def test_quotes_are_taken_off_and_values_expanded(shell: Any) -> None:
    shell.user_ns["which"] = "gpu"
    given = task_options(shell, "{which} --session \"$which\" --timeout '2m'")
    assert (given.pool, given.session, given.timeout) == ("gpu", "gpu", 120)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("-i 3x", "is not a name"),
        ("-o a=b=c", "is not a name"),
        ("--timeout soon", "is not a duration"),
        ("--scope all", "fresh, session, replica"),
        ("--retry-on rain", "oom, crash, timeout"),
        ("--gpu 3", "unrecognized arguments"),
        ("'gpu", "No closing quotation"),
        ("--local --bg", "do not go together"),
        ("--fresh --replica 1", "do not go together"),
        ("--replica 1 --retry-on oom", "--replica and --retries do not go together"),
        ("--as job", "add --bg"),
        ("--session a --scope replica", "does not"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(line: str, says: str, shell: Any) -> None:
    error = run(shell, f"%%flyte_task {line}\n1")
    assert isinstance(error, UsageError)
    assert says in str(error)


def test_an_unknown_variable_is_named_before_anything_is_sent(shell: Any) -> None:
    shell.user_ns["prompts"] = []
    error = run(shell, "%%flyte_task gpu -i promts\n1")
    assert "-i promts: there is no variable promts in this notebook. Did you mean prompts?" in str(error)


def test_a_syntax_error_is_shown_as_that_of_a_local_cell(shell: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run(shell, "%%flyte_task gpu\nx = 1\ny = = 2")
    there = capsys.readouterr().out
    run(shell, "\nx = 1\ny = = 2")
    here = capsys.readouterr().out
    assert "y = = 2" in there
    assert there.splitlines()[1:4] == here.splitlines()[1:4]
    assert "magics" not in there


def test_an_unknown_pool_is_answered_with_a_suggestion(shell: Any) -> None:
    shell.user_ns["env"] = flyte.TaskEnvironment("magics-known", reusable=flyte.ReusePolicy(2))
    flyte.pool(shell.user_ns["env"])
    error = run(shell, "%%flyte_task magics-knwn\n1")
    assert isinstance(error, errors.NoSuchPool)
    assert "Did you mean `magics-known`?" in error.__notes__[-1]
    assert "%flyte_pool create magics-knwn" in error.__notes__[-1]


def test_a_pool_is_found_by_variable_and_by_name(shell: Any) -> None:
    env = shell.user_ns["env"] = flyte.TaskEnvironment("magics-found", reusable=flyte.ReusePolicy(2))
    notebook, _ = magics._loaded[shell]
    pool = flyte.pool(env)
    assert notebook.pools.find("env") is pool
    assert notebook.pools.find("magics-found") is pool
    assert notebook.pools.find() is pool, "the last one"


def test_a_name_means_the_environment_that_has_it_now(shell: Any) -> None:
    notebook, _ = magics._loaded[shell]
    policy = flyte.ReusePolicy(2)
    shell.user_ns["env"] = flyte.TaskEnvironment("magics-again", reusable=policy)
    before = notebook.pools.find("magics-again")
    shell.user_ns["env"] = flyte.TaskEnvironment("magics-again", reusable=policy, env_vars={"MODE": "fast"})
    assert notebook.pools.find("magics-again") is not before
    assert notebook.pools.find("magics-again") is flyte.pool(shell.user_ns["env"])


def test_a_magic_below_the_first_line_is_refused_unless_it_is_text(shell: Any) -> None:
    error = run(shell, "x = 1\n%%flyte_task gpu\n2")
    assert "on line 2; it has to be the first line" in str(error)
    assert run(shell, 'text = """\n%%flyte_task gpu\n"""') is None


def test_the_directive_is_the_magic(shell: Any) -> None:
    assert shell.transform_cell("#| flyte_task: gpu -o y\ny = 1") == shell.transform_cell(
        "%%flyte_task gpu -o y\ny = 1"
    )
    assert shell.transform_cell("#| echo: false\n1") == "#| echo: false\n1\n"


def test_a_local_cell_is_an_ordinary_one(shell: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(shell, "%%flyte_task --local -o y=z\ny = 20\ny + 1") is None
    assert shell.user_ns["z"] == 20
    assert "21\n" in capsys.readouterr().out
    assert isinstance(run(shell, "%%flyte_task --local\n1 / 0"), ZeroDivisionError)


def test_loading_twice_and_unloading_leaves_nothing(shell: Any, capsys: pytest.CaptureFixture[str]) -> None:
    magics.load(shell)
    assert len([each for each in shell.input_transformers_cleanup if each is directive.rewrite]) == 1
    magics.unload(shell)
    magics.unload(shell)
    assert shell.find_line_magic("flyte_task") is None
    assert directive.rewrite not in shell.input_transformers_cleanup
    assert shell.Completer.custom_matchers == []
    magics.load(shell)
    assert "flyte_jupyter" in capsys.readouterr().out


def test_each_magic_has_its_help(shell: Any) -> None:
    for name in ("task", "preload", "pool", "status", "cancel", "wait", "result", "logs", "config", "doctor"):
        magic = shell.find_line_magic(f"flyte_{name}")
        assert f"%flyte_{name}" in magic.__doc__


# --- settings


def test_a_setting_comes_from_the_nearest_place(shell: Any) -> None:
    settings.user_file().parent.mkdir(parents=True)
    settings.user_file().write_text('[cells]\ntimeout = "5m"\npool = "gpu"\n')
    settings.project_file().write_text('[other]\nx = 1\n\n[cells]\npool = "cpu"\n')
    made = settings.Settings()
    made.set("quiet", True)
    assert (made.timeout, made.pool, made.quiet) == (300, "cpu", True)
    assert made.origins == {
        "pool": "project", "scope": "default", "timeout": "user", "progress_after": "default", "quiet": "notebook",
        "output_limit": "default",
    }  # fmt: skip


def test_settings_are_saved_beside_what_else_is_in_the_file(shell: Any) -> None:
    settings.project_file().write_text('[cells]\npool = "cpu"\n\n[other]\nx = 1\n')
    made = settings.Settings()
    made.set("output_limit", 1024)
    made.save("project")
    again = settings.Settings()
    assert (again.pool, again.output_limit) == ("cpu", 1024)
    assert "x = 1" in settings.project_file().read_text()


def test_a_file_that_makes_no_sense_is_named_and_not_used(shell: Any) -> None:
    settings.project_file().write_text('[cells]\ntimeout = "soon"\n')
    made = settings.Settings()
    assert made.timeout == 0
    assert "flyte_jupyter.toml (project) is not used: 'soon' is not a duration" in made.table()


# --- completion


def completed(shell: Any, text: str) -> list[str]:
    """What a completer offers at the end of the text."""
    line = text.count("\n")
    column = len(text.rpartition("\n")[2])
    found = shell.Completer._complete(cursor_line=line, cursor_pos=column, full_text=text)
    result = found.get("flyte_jupyter", {"completions": []})
    return [each.text for each in result["completions"]]


def test_options_pools_and_variables_are_completed(shell: Any) -> None:
    shell.user_ns["prompts"] = []
    shell.user_ns["env"] = flyte.TaskEnvironment("magics-completed", reusable=flyte.ReusePolicy(2))
    flyte.pool(shell.user_ns["env"])
    assert "--timeout" in completed(shell, "%%flyte_task gpu --ti")
    assert "--timeout" in completed(shell, "#| flyte_task: gpu --ti")
    assert completed(shell, "%%flyte_task -i prom") == ["prompts"]
    assert completed(shell, "%%flyte_task -i env,prom") == ["prompts"]
    assert completed(shell, "%%flyte_task --scope ses") == ["session"]
    assert "env" in completed(shell, "%%flyte_task en")
    assert completed(shell, "%flyte_pool sc") == ["scale"]
    assert "env" in completed(shell, "%flyte_pool scale en")
    assert completed(shell, "x = 1\nprom") == []


# --- floods


class Written(outputs.Screen):
    def __init__(self) -> None:
        self.pieces: list[str] = []

    def text(self, stream: str, text: str) -> None:
        self.pieces.append(text)

    def clear(self, *, wait: bool) -> None:
        self.pieces.clear()


def test_a_flood_is_cut_and_the_rest_kept_aside(shell: Any) -> None:
    screen = Written()
    guard = outputs.Guard(screen, 10, "%flyte_result 1 --output")
    for _ in range(3):
        guard.take(Output.STDOUT, b"12345678")
    shown = "".join(screen.pieces)
    assert shown.startswith("1234567812\n... more than")
    assert shown.endswith("%flyte_result 1 --output\n")
    assert guard.spool is not None
    assert "".join(guard.spool.read()) == "34567812345678"
    guard.spool.close()


def test_what_is_overwritten_is_no_flood(shell: Any) -> None:
    screen = Written()
    guard = outputs.Guard(screen, 10, "")
    for _ in range(10):
        guard.take(Output.STDERR, b"\r 12 % ...")
        guard.take(Output.STDOUT, b"123456")
        guard.take(Output.CLEAR, b"\x00")
    assert guard.spool is None


def test_the_rest_is_bounded(shell: Any) -> None:
    spool = outputs.Spool(limit=4)
    spool.write("123456")
    assert next(spool.read()) == "1234"
    assert spool.dropped == 2
    spool.close()
