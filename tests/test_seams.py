"""Names of other packages that this one depends on, though nobody has promised them: a test for each."""

from __future__ import annotations

import importlib
import inspect
from importlib.metadata import PackageNotFoundError, version

import pytest

ATTRIBUTES = [
    ("ipykernel", "ipykernel.ipkernel", "IPythonKernel.debugger_class"),
    ("ipykernel", "ipykernel.ipkernel", "IPythonKernel.execute_request"),
    ("ipykernel", "ipykernel.ipkernel", "IPythonKernel.interrupt_request"),
    ("ipykernel", "ipykernel.ipkernel", "IPythonKernel.create_subshell_request"),
    ("ipykernel", "ipykernel.ipkernel", "IPythonKernel.delete_subshell_request"),
    ("ipykernel", "ipykernel.subshell_manager", "SubshellManager.list_subshell"),
    ("ipykernel", "ipykernel.subshell_manager", "SubshellManager.get_subshell_asyncio_lock"),
    ("ipykernel", "ipykernel.subshell", "SubshellThread"),
    ("ipykernel", "ipykernel.kernelapp", "IPKernelApp._bind_socket"),
    ("ipykernel", "ipykernel.kernelapp", "IPKernelApp.configure_tornado_logger"),
    ("ipykernel", "ipykernel.comm.comm", "BaseComm.publish_msg"),
    ("ipykernel", "ipykernel.jsonutil", "encode_images"),
    ("ipykernel", "ipykernel.jsonutil", "json_clean"),
    ("ipython", "IPython.core.display_trap", "DisplayTrap.__enter__"),
    ("ipython", "IPython.core.displaypub", "DisplayPublisher._validate_data"),
    ("ipython", "IPython.core.displayhook", "DisplayHook.compute_format_data"),
    ("ipython", "IPython.core.displayhook", "DisplayHook.semicolon_at_end_of_expression"),
    ("ipython", "IPython.core.interactiveshell", "InteractiveShell._showtraceback"),
    ("ipython", "IPython.core.interactiveshell", "InteractiveShell.transform_ast"),
    ("ipython", "IPython.core.interactiveshell", "ExecutionInfo"),
    ("cloudpickle", "cloudpickle", "Pickler._dynamic_function_reduce"),
    ("cloudpickle", "cloudpickle", "Pickler._function_getnewargs"),
    ("cloudpickle", "cloudpickle", "Pickler._dispatch_table"),
    ("cloudpickle", "cloudpickle", "Pickler.dispatch_table"),
    ("cloudpickle", "cloudpickle.cloudpickle", "_dynamic_class_reduce"),
    ("cloudpickle", "cloudpickle.cloudpickle", "_class_reduce"),
    ("cloudpickle", "cloudpickle.cloudpickle", "_DYNAMIC_CLASS_TRACKER_BY_CLASS"),
    ("ipykernel", "ipykernel.displayhook", "ZMQShellDisplayHook._hooks"),
    ("ipykernel", "ipykernel.iostream", "OutStream"),
    ("pyzmq", "zmq", "Context._instance"),
    ("python", "asyncio.events", "_get_running_loop"),
    ("ipython", "IPython.utils._process_common", "arg_split"),
    ("python", "importlib", "_bootstrap._find_and_load"),
    ("python", "abc", "_abc_init"),
    ("python", "atexit", "_run_exitfuncs"),
]
"""Package, module, and what is looked for in it."""

WRITTEN = [
    ("ipykernel", "ipykernel.subshell_manager", "SubshellManager", "self.control_to_shell_channel"),
    ("ipykernel", "ipykernel.socket_pair", "SocketPair", "self.from_socket"),
    ("ipykernel", "ipykernel.subshell_manager", "SubshellManager", '"delete"'),
    ("ipykernel", "ipykernel.iostream", "IOPubThread", "self.background_socket"),
    ("ipykernel", "ipykernel.ipkernel", None, "_is_debugpy_available"),
    ("ipython", "IPython.core.interactiveshell", "InteractiveShell", "self.InteractiveTB ="),
    ("ipython", "IPython.core.interactiveshell", "InteractiveShell", "self.SyntaxTB ="),
    ("ipython", "IPython.core.interactiveshell", "InteractiveShell", "self.last_execution_result ="),
    ("ipython", "IPython.core.interactiveshell", "InteractiveShell", "self.user_ns_hidden"),
    ("ipython", "IPython.core.ultratb", "SyntaxTB", "self.last_syntax_error"),
    ("ipykernel", "ipykernel.iostream", "OutStream", "self._flush_pending"),
    ("ipykernel", "ipykernel.displayhook", "ZMQShellDisplayHook", "self.msg"),
    ("ipykernel", "ipykernel.comm.comm", None, "_reply_subshell_for"),
    ("ipykernel", "ipykernel.kernelbase", None, "_reply_subshell_for"),
    ("ipython", "IPython.core.compilerop", "CachingCompiler", "self._filename_map"),
    ("jupyter_client", "jupyter_client.manager", "KernelManager", "_kernel_spec"),
    ("python", "argparse", "_ActionsContainer", "self._actions ="),
    ("tornado", "tornado.platform.asyncio", "BaseAsyncIOLoop", "self.asyncio_loop"),
]
"""Package, module, class, and what its text has: attributes that an instance gets."""


def moved(package: str, what: str) -> str:
    try:
        package = f"{package} {version(package)}"
    except PackageNotFoundError:
        package = "this Python"
    return f"{package} has moved it: {what}; see the files seams.py"


@pytest.mark.parametrize(("package", "module", "path"), ATTRIBUTES)
def test_a_name_of_another_package_is_where_it_is_looked_for(package: str, module: str, path: str) -> None:
    try:
        found = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError):
        pytest.fail(moved(package, f"{module}.{path}"), pytrace=False)


@pytest.mark.parametrize(("package", "module", "name", "text"), WRITTEN)
def test_an_attribute_of_another_package_is_set_where_it_is_looked_for(
    package: str, module: str, name: str | None, text: str
) -> None:
    try:
        loaded = importlib.import_module(module)
        source = inspect.getsource(loaded if name is None else getattr(loaded, name))
    except (ImportError, AttributeError):
        source = ""
    if text not in source:
        pytest.fail(moved(package, f"{text} in {module}"), pytrace=False)
