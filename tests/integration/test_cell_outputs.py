"""A quiet task cell sends the front end the messages that the same cell sends when it runs in the notebook itself.

One real kernel runs each code twice; the whole messages are compared, less what no two executions share.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import START_S, TIME_SCALE
from test_cell_kernel import ABSENT, SAME
from test_notebook import Notebook

pytestmark = pytest.mark.kernel

SETUP = """
%load_ext flyte_jupyter
import flyte_jupyter; flyte_jupyter.PoolHandle.view = None  # a card's messages come at any time
import flyte_jupyter as flyte
env = flyte.TaskEnvironment("shown", reusable=flyte.ReusePolicy(replicas=1))
"""

UNLIKE = {
    "a line",  # lists the magics, and the notebook's own are not there
    "a cell magic",  # its two streams come in any order
    "broken",  # IPython names no error then; a task cell does
    "a figure before an error",  # the figure comes first, because the error ends the cell
}
CODES = {name: code for name, code in SAME.items() if name not in UNLIKE} | {
    "stdout": "for n in range(3): print('line', n)",
    "stderr": "import sys\nprint('a', file=sys.stderr)\nsys.stderr.write('b')",
    "streams in turn": "import sys\nfor n in range(6): print(n, file=(sys.stdout, sys.stderr)[n % 2], flush=True)",
    "html": "from IPython.display import HTML\nHTML('<b>bold</b>')",
    "markdown": "from IPython.display import Markdown\nMarkdown('*slanted*')",
    "latex": "from IPython.display import Latex, Math\ndisplay(Math('x^2'))\nLatex('$x^2$')",
    "svg": "from IPython.display import SVG\nSVG('<svg xmlns=\"http://www.w3.org/2000/svg\"><g/></svg>')",
    "javascript": "from IPython.display import Javascript\nJavascript('1 + 1')",
    "all representations": """
class All:
    def _repr_html_(self): return '<b>h</b>'
    def _repr_markdown_(self): return '*m*'
    def _repr_latex_(self): return '$l$'
    def _repr_svg_(self): return '<svg/>'
    def _repr_png_(self): return b'png'
    def _repr_jpeg_(self): return b'jpeg', {'width': 3}
    def _repr_json_(self): return {'j': 1}
    def __repr__(self): return 'plain'
display(All())
All()
""",
    "a display that another updates": """
from IPython.display import update_display
display('a', display_id='first')
display('b', display_id='second')
update_display('c', display_id='first')
display('d', display_id='second', update=True)
""",
    "cleared at once": "from IPython.display import clear_output\nprint('a')\nclear_output()\nprint('b')",
    "cleared later": "from IPython.display import clear_output\nprint('a')\nclear_output(wait=True)\nprint('b')",
    "a bar with its times": "from tqdm import tqdm\nfor _ in tqdm(range(3), desc='step'): pass",
    "a bar by a generator": "from tqdm.auto import trange\nfor _ in trange(2): pass",
    "styled pandas": "import pandas as pd\npd.DataFrame({'a': [1.5]}).style.set_uuid('u')",
    "a timed line": "%timeit -n1 -r1 -q pass",
    "a magic that returns": "here = %env FLYTE_NOWHERE=2\nhere is None",
    "a script": "%%bash\necho out",
    "a cell magic of IPython": "%%writefile /dev/null\ntext",
    "javascript by a magic": "%%javascript\n1 + 1",
    "html by a magic": "%%html\n<i>x</i>",
    "a failing shell": "!exit 3\n_exit_code",
    "a value in the shell": "name = 'Ada'\n!echo {name} $name",
    "awaited at the end": "import asyncio\nawait asyncio.sleep(0, 'value')",
    "none at the end": "None",
    "several at the end": "1; 2",
    "silenced with a comment": "1 + 1;  # quiet",
    "a long text": "'x' * 5000",
    "a long list": "list(range(2000))",
    "colours": "print('\\x1b[31mred\\x1b[0m')",
    "no text": "''",
    "a syntax error": "x = 1\ny = = 2",
    "an indentation error": "if True:\nx = 1",
    "an error in a function": "def share(total, count):\n    return total / count\n\nshare(3, 0)",
    "an error with notes": "error = ValueError('a')\nerror.add_note('b')\nraise error",
    "an error that awaits": "import asyncio\nasync def fails():\n    await asyncio.sleep(0)\n    1 / 0\nawait fails()",
    "an error of a library": "import json\njson.loads('{')",
    "a class of its own": "class Wrong(Exception): pass\nraise Wrong('so')",
    "two questions": "a = input('one? ')\nb = input('two? ')\nprint(a, b)",
    "a name that is not there": "nowhere",
    "an interrupt of its own": "raise KeyboardInterrupt",
    "a cancellation of its own": "import asyncio\nraise asyncio.CancelledError('so')",
    "a cancelled future of its own": "from concurrent.futures import CancelledError\nraise CancelledError('so')",
    "an outcome of a test": "import pytest\npytest.fail('no luck')",
    "a stop of an iteration": "next(iter(()))",
    "an error of pydantic": "import pydantic\nclass Item(pydantic.BaseModel): n: int\nItem(n='abc')",
    "an error of a final class": """
class Final(Exception):
    def __init_subclass__(cls): raise RuntimeError
raise Final('m')
""",
    "a frozen error": """
import dataclasses
@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    left: int
Frozen.__module__ = '__main__'
raise Frozen(3)
""",
    "many small prints": "for n in range(2000): print(n, end=' ')",
    "a warning of a kind": "import warnings\nwarnings.warn('old', DeprecationWarning)",
    "an output widget": "import ipywidgets as w\nout = w.Output()\nwith out: print('inside')\nprint('outside')\nout",
    "interactive": "import ipywidgets as w\nw.interact(lambda n: n * 2, n=(0, 3));",
    "a thread": "import threading\nt = threading.Thread(target=print, args=('from a thread',))\nt.start(); t.join()",
}  # fmt: skip

ID = re.compile(r"[0-9a-f]{32}\b|\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(_\d+)*|\b[0-9a-f]{8}-[0-9a-f]{24}(_\d+)*")
ANSWERS = {"a question": ["Ada"], "a password": ["Ada"], "two questions": ["1", "2"]}


@pytest.fixture(scope="module")
def notebook(shared_broker: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    notebook = Notebook(tmp_path_factory.mktemp("nb"))
    notebook.setup = SETUP
    try:
        notebook.begin()
        assert notebook.run("%flyte_pool warm shown").error == ""
        yield notebook
        notebook.run("%flyte_pool stop shown --now")
    finally:
        notebook.end()


Message = tuple[str, dict[str, Any], dict[str, Any], list[bytes]]


def messages(notebook: Notebook, code: str, answers: list[str]) -> list[Message]:
    """All that a front end is told of one execution, the questions in their place, and the reply at the end."""
    found: list[Message] = []

    def told(message: dict[str, Any]) -> None:
        if message["msg_type"] not in ("status", "execute_input"):
            found.append((message["msg_type"], message["content"], message["metadata"], list(message["buffers"])))

    def asked(message: dict[str, Any]) -> None:
        told(message)
        notebook.client.input(left.pop(0))

    left = list(answers)
    reply = notebook.client.execute_interactive(
        code, allow_stdin=True, stdin_hook=asked, output_hook=told, timeout=START_S * TIME_SCALE, stop_on_error=False
    )
    found.append(("execute_reply", reply["content"], {}, []))
    assert not left, "a question that was not asked"
    return found


def comparable(found: list[Message]) -> list[Any]:
    """Without ids, counts, addresses and times; neighbouring pieces of a stream are joined, as a front end does."""
    joined: list[Any] = []
    for kind, content, metadata, buffers in found:
        shape = {key: value for key, value in content.items() if key != "execution_count"}
        if kind in ("error", "execute_reply") and "traceback" in shape:
            shape["traceback"] = _lines("\n".join(shape["traceback"]))
        if kind == "stream" and joined and joined[-1][0] == kind and joined[-1][1]["name"] == shape["name"]:
            joined[-1][1]["text"] += shape["text"]
        elif kind == "execute_reply":
            joined.append((kind, shape, {}, []))
        else:
            joined.append((kind, shape, metadata, [bytes(buffer).hex() for buffer in buffers]))
    return _plain(joined, {})


def _plain(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {_plain(key, names): _plain(each, names) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, names) for each in value]
    if not isinstance(value, str):
        return value
    value = ID.sub(lambda found: names.setdefault(found[0], f"ID{len(names)}"), value)
    value = re.sub(r"\d\d:\d\d|[\d.?]+ ?(it/s|s/it)|0x[0-9a-f]+", "TIME", value)
    return re.sub(r"(/tmp/ipykernel_\d+/)?\b\d+\.py(:\d+|, line \d+)|on line \d+", "LINE", value)


def _lines(traceback: str) -> str:
    """Without the line of the magic, the numbers of cells and lines, and the parameters of functions."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", traceback).splitlines()
    lines = [line for line in lines if "%%flyte_task" not in line]
    lines = [re.sub(r"(, in [\w.]+)\(.*\)", r"\1()", line) for line in lines]
    return re.sub(r"In\[\d+\], line \d+|\b\d+\b", "#", "\n".join(lines))


@pytest.mark.parametrize("name", [pytest.param(name, id=name.replace(" ", "-")) for name in CODES])
def test_the_front_end_is_told_the_same(name: str, notebook: Notebook) -> None:
    code, answers = CODES[name].lstrip("\n"), ANSWERS.get(name, [])
    if any(module in code for module in ABSENT):
        pytest.skip(f"needs one of {ABSENT}")
    here = messages(notebook, code, answers)
    there = messages(notebook, f"%%flyte_task shown --quiet\n{code}", answers)
    assert comparable(there) == comparable(here)
