"""`concurrent_ml.compat.ray`: `import ray` means this library, where it was asked for and nowhere else."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from concurrent_ml import ActorMethod, ObjectRefGenerator, exceptions
from concurrent_ml.compat.ray import _names

REPOSITORY = Path(__file__).parents[3]
NAMES = [
    (module, name, state.partition(": ")[0])
    for module, names in _names.NAMES.items()
    for name, state in names.items()
]
PROVIDED = [(module, name) for module, name, state in NAMES if state != "no"]
NOT_PROVIDED = [(module, name) for module, name, state in NAMES if state == "no"]


@pytest.fixture(autouse=True, scope="module")
def ray():
    """Installed for the tests of this file only."""
    from concurrent_ml import _state
    from concurrent_ml.compat import ray
    from concurrent_ml.compat.ray._finder import Finder

    if _state.client is not None:
        importlib.import_module("concurrent_ml").shutdown()
    iterate, options, kinds = ObjectRefGenerator.__iter__, ActorMethod.options, dict(exceptions._KINDS)
    ray.install()
    ray.install()  # again does nothing
    yield importlib.import_module("ray")
    ObjectRefGenerator.__iter__, ActorMethod.options = iterate, options
    exceptions._KINDS.update(kinds)
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, Finder)]
    for name in [name for name in sys.modules if name == "ray" or name.startswith("ray.")]:
        del sys.modules[name]
    _state.job_env.clear()


def run(*arguments, cwd=None, command=("-m", "concurrent_ml.compat.ray")):
    """A program of its own: what it printed."""
    done = subprocess.run(
        [sys.executable, *command, *map(str, arguments)],
        cwd=cwd,
        check=False,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- the table ----


@pytest.mark.parametrize(("module", "name"), PROVIDED)
def test_a_name_that_is_provided_is_there(module, name):
    found = importlib.import_module(module)
    assert hasattr(found, name) or importlib.import_module(f"{module}.{name}")


@pytest.mark.parametrize(("module", "name"), NOT_PROVIDED)
def test_a_name_that_is_not_provided_is_named_however_it_is_reached(module, name):
    full = f"{module}.{name}"
    with pytest.raises(AttributeError, match=full):
        getattr(importlib.import_module(module), name)
    with pytest.raises(ImportError, match=full):
        importlib.import_module(full)
    with pytest.raises(ImportError, match=full):
        exec(f"from {module} import {name}")


@pytest.mark.parametrize("module", _names.NAMES)
def test_a_module_has_no_public_name_that_the_table_lacks(module):
    public = set(getattr(importlib.import_module(module), "__all__", []))
    assert public <= set(_names.NAMES[module]) | {
        "actor", "exceptions", "remote_function", "runtime_context", "runtime_env", "util",
    }  # fmt: skip


def test_the_page_says_what_the_table_says():
    page = REPOSITORY / "docs" / "ray-compatibility.md"
    assert page.read_text() == _names.page(), (
        "run: .venv/bin/python -m concurrent_ml.compat.ray --names > docs/ray-compatibility.md"
    )


def test_what_nobody_has_heard_of_is_named_too(ray):
    with pytest.raises(AttributeError, match=r"ray\.nothing_such is not provided"):
        ray.nothing_such  # noqa: B018
    with pytest.raises(ImportError, match=r"ray\.nothing_such\.at_all|ray\.nothing_such"):
        importlib.import_module("ray.nothing_such.at_all")


# ---- exceptions ----


def test_exceptions_are_under_both_names(ray):
    from concurrent_ml import exceptions

    assert ray.exceptions.RayError is exceptions.ClusterError
    for name in _names.NAMES["ray.exceptions"]:
        assert issubclass(getattr(ray.exceptions, name), ray.exceptions.RayError)
    assert issubclass(ray.exceptions.ActorDiedError, ray.exceptions.RayActorError)
    assert issubclass(ray.exceptions.GetTimeoutError, TimeoutError)
    assert issubclass(ray.exceptions.ObjectFreedError, ray.exceptions.ObjectLostError)


# ---- options ----


@pytest.mark.parametrize(
    "options", [{"num_cpus": 2}, {"max_pending_calls": 5, "placement_group": None}, {"runtime_env": {}}]
)
def test_options_that_are_known_or_harmless_are_taken(ray, options):
    class Plain:
        pass

    assert isinstance(ray.remote(**options)(Plain), ray.actor.ActorClass)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"max_retries": 0.5}, TypeError, "The type of keyword 'max_retries' must be"),
        ({"max_retries": -2}, ValueError, "only accepts None, 0, -1 or a positive integer"),
        ({"max_calls": -1}, ValueError, "only accepts None, 0 or a positive integer"),
        ({"num_gpus": 0.00001}, ValueError, "cannot go beyond 0.0001"),
    ],
)
def test_common_mistakes_are_told_in_words_that_programs_look_for(ray, options, error, words):
    with pytest.raises(error, match=words):
        ray.remote(**options)(lambda: None)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"fallback_strategy": [{"label_selector": {}}]}, "fallback_strategy"),
        ({"runtime_env": {"conda": ["requests"]}}, "conda"),
        ({"runtime_env": {"working_dir": "https://example.org/code.zip"}}, "working_dir"),
        ({"runtime_env": {"pip": ["requests"], "uv": ["requests"]}}, "pip"),
    ],
)
def test_options_that_are_not_provided_are_named(ray, options, named):
    with pytest.raises(ValueError, match=named):
        ray.remote(**options)(lambda: None)


def test_a_label_selector_is_a_strategy(ray):
    options = ray.remote(label_selector={"zone": "west", "kind": "!in(a, b)"})(lambda: None)._options
    rules = options.scheduling_strategy.hard
    assert {key: (type(rule).__name__, list(rule.values)) for key, rule in rules.items()} == {
        "zone": ("In", ["west"]),
        "kind": ("NotIn", ["a", "b"]),
    }


def test_a_function_may_have_the_name_of_its_module(ray):
    module = importlib.import_module("ray.util.placement_group")
    assert ray.util.placement_group is module.placement_group


def test_an_accelerator_is_a_resource_of_its_name(ray):
    function = ray.remote(accelerator_type=ray.util.accelerators.NVIDIA_A100, resources={"x": 1})(
        lambda: None
    )
    assert dict(function._options.resources) == {"x": 1, "accelerator_type:A100": 0.001}


# ---- programs ----

PROGRAM = """
import sys

import helper
import ray
from ray.util.state import list_tasks

print("arguments", sys.argv)
with ray.init(num_cpus=2, include_dashboard=False, logging_level="error", namespace="mine") as context:
    print("node", context["node_id"] == ray.get_runtime_context().get_node_id())

    @ray.remote
    def double(x):
        import ray

        if x < 0:
            raise ValueError("below zero")
        return 2 * x, ray.get_runtime_context().namespace

    print(ray.get([double.remote(1), helper.triple.remote(1)]))
    for kind in (ValueError, ray.exceptions.RayTaskError):
        try:
            ray.get(double.remote(-1))
        except kind as error:
            print(kind.__name__, error.cause)

    @ray.remote(num_cpus=1)
    class Counter:
        def __init__(self):
            self.count = 0

        @ray.method(num_returns=2)
        def add(self, by):
            self.count += by
            return self.count, ray.get(double.remote(self.count))[0]

    @ray.remote
    def count(n):
        yield from range(n)

    print([ray.get(ref) for ref in ray.get(count.remote(3))])
    group = ray.util.placement_group([{"CPU": 1}], strategy="PACK")
    ray.get(group.ready())
    with_group = double.options(placement_group=group, placement_group_bundle_index=0)
    print(ray.get(with_group.remote(2))[0], ray.util.placement_group_table(group)["state"])
    ray.util.remove_placement_group(group)

    kept = Counter.options(name="counter", get_if_exists=True).remote()
    counter = ray.get_actor("counter")
    print(ray.get(counter.add.remote(4)), ray.util.list_named_actors())
    try:
        Counter.options(name="counter").remote()
    except ray.exceptions.ActorAlreadyExistsError as error:
        print("already taken" in str(error))
    ray.kill(counter)
    print(ray.util.list_named_actors())
    print(sorted({task["state"] for task in list_tasks(filters=[("name", "=", "double")])}))
print(ray.is_initialized())
"""

HELPER = """
import ray


@ray.remote
def triple(x):
    return 3 * x
"""

PRINTS = """\
node True
[(2, 'mine'), 3]
ValueError below zero
TaskError below zero
[0, 1, 2]
4 CREATED
[4, 8] ['counter']
True
[]
['FAILED', 'FINISHED']
False
"""


@pytest.fixture
def program(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "helper.py").write_text(HELPER)
    return tmp_path


def test_a_program_runs_unchanged(program, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    script = program / "program.py"
    assert run(script, "-x", "1", cwd=elsewhere) == f"arguments [{str(script)!r}, '-x', '1']\n" + PRINTS


def test_a_module_runs_unchanged(program):
    script = str(program / "program.py")
    assert run("-m", "program", "a", cwd=program) == f"arguments [{script!r}, 'a']\n" + PRINTS


def test_a_program_may_ask_for_it_itself(program):
    source = "from concurrent_ml.compat import ray\nray.install()\n" + PROGRAM
    (program / "asks.py").write_text(source)
    assert run(program / "asks.py", command=()).endswith(PRINTS)


def test_files_and_modules_go_along(tmp_path):
    files, module = tmp_path / "files", tmp_path / "weights"
    files.mkdir()
    module.mkdir()
    (files / "data.txt").write_text("4")
    (module / "__init__.py").write_text("WEIGHT = 3")
    (tmp_path / "program.py").write_text(
        f"""
import ray

ray.init(num_cpus=1, runtime_env={{"working_dir": {str(files)!r}, "env_vars": {{"COLOUR": "red"}}}})

@ray.remote
def found():
    import os

    return open("data.txt").read(), os.environ["COLOUR"]

@ray.remote(runtime_env={{"py_modules": [{str(module)!r}]}})
class Scale:
    def weight(self):
        import weights

        return weights.WEIGHT, open("data.txt").read()

print(ray.get(found.remote()), ray.get(Scale.remote().weight.remote()))
"""
    )
    assert run(tmp_path / "program.py") == "('4', 'red') (3, '4')\n"


def test_joblib_and_the_pool_run_on_the_cluster(tmp_path):
    (tmp_path / "program.py").write_text(
        """
import os

import joblib
import ray
from ray.util.joblib import register_ray
from ray.util.multiprocessing import Pool

ray.init(num_cpus=2)
register_ray()

def here(_):
    import os

    return os.getpid()

with joblib.parallel_backend("ray", ray_remote_args={"num_cpus": 0.5}):
    pids = joblib.Parallel(n_jobs=2)(joblib.delayed(here)(i) for i in range(4))
with Pool(2, ray_remote_args={"num_cpus": 0.5}) as pool:
    pids += pool.map(here, range(4))
print(len(pids), os.getpid() in pids)
"""
    )
    assert run(tmp_path / "program.py") == "8 False\n"


def test_the_processes_of_a_pool_are_actors(tmp_path):
    (tmp_path / "program.py").write_text(
        """
import os
import sys

import ray
from ray.util.multiprocessing import Pool

base = 0

def note(folder):
    global base
    base = 10
    open(f"{folder}/{os.getpid()}", "w").close()

def here(_):
    return os.getpid()

def plus(n):
    if n == 1:
        raise ValueError(n)
    return base + n

folder = sys.argv[1]
pool = Pool(2, note, (folder,), maxtasksperchild=1)  # starts a cluster of so many CPUs
print(ray.cluster_resources()["CPU"], len(os.listdir(folder)))
print(len(set(pool.map(here, range(6), chunksize=1))))
print([str(item) for item in pool.imap(plus, range(3), chunksize=3)])
pool.close()
pool.join()
ref = ray.put(1)
with Pool(2) as pool:
    print(pool.map(ray.get, [ref, ref]), pool.apply(isinstance, (ref, ray.ObjectRef)))
try:
    Pool(3)
except ValueError as error:
    print(error)
"""
    )
    (tmp_path / "noted").mkdir()
    assert run(tmp_path / "program.py", str(tmp_path / "noted")) == (
        "2.0 2\n6\n['10', '1', '12']\n[1, 1] True\nTried to start a pool with 3 processes on an existing ray "
        "cluster, but there are only 2 CPUs in the ray cluster.\n"
    )


def test_gpus_have_the_names_that_were_visible_when_the_cluster_started(tmp_path):
    (tmp_path / "program.py").write_text(
        """
import os

import ray

@ray.remote(num_gpus=1)
def mine():
    return ray.get_gpu_ids(), ray.get_runtime_context().get_accelerator_ids()["GPU"]

for visible in ("4,5", None):
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    if visible:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
    ray.init(num_gpus=2)
    ids, again = ray.get(mine.remote())
    print(len(ids), ids[0] in ("4", "5"), ids[0] in (0, 1), again == [str(ids[0])])
    ray.shutdown()
"""
    )
    assert run(tmp_path / "program.py") == "1 True False True\n1 False True True\n"


def test_a_ref_is_made_again_of_its_bytes(tmp_path):
    (tmp_path / "program.py").write_text(
        """
import ray

ray.init(num_cpus=1)
ref = ray.put(bytes(10**6))
again = ray.ObjectRef(ref.binary())
print(again == ref, len(ray.get(again)))
binary = ref.binary()
del ref, again
try:
    ray.get(ray.ObjectRef(binary), timeout=10)
except ray.exceptions.RayError as error:
    print(type(error).__name__)
try:
    ray.ObjectRef(b"0")
except ValueError as error:
    print(error)
"""
    )
    lines = run(tmp_path / "program.py").splitlines()
    assert lines[0] == "True 1000000"
    assert lines[1] == "ObjectFreedError"
    assert "needs to have length 16" in lines[2]


def test_descriptions_of_groups_are_checked(tmp_path):
    (tmp_path / "program.py").write_text(
        """
from ray.util.placement_group import VALID_PLACEMENT_GROUP_STRATEGIES, validate_placement_group as check

print([check([{"CPU": 1}], strategy) for strategy in VALID_PLACEMENT_GROUP_STRATEGIES])
for wrong in ("CPU", [], [{"CPU": "1"}], [{"CPU": 0}]):
    try:
        check(wrong)
    except ValueError as error:
        print(str(error)[:40])
try:
    check([{"CPU": 1}], "TIGHT")
except ValueError as error:
    print(error)
"""
    )
    assert run(tmp_path / "program.py").splitlines() == [
        "[False, False, False, False]",
        "Placement group bundles must be a list, ",
        "Bundles must be a non-empty list of reso",
        "Bundles must be resource dictionaries li",
        "Bundles cannot be an empty dictionary or",
        "Invalid placement group strategy TIGHT. Supported strategies are: PACK, SPREAD, STRICT_PACK, STRICT_SPREAD.",
    ]


def test_who_does_not_ask_gets_nothing_of_it(tmp_path):
    (tmp_path / "ray.py").write_text("name = 'another'")
    (tmp_path / "program.py").write_text(
        """
import os

import concurrent_ml as cml
import ray

cml.init(num_cpus=1)

@cml.remote
def other():
    import ray

    return ray.name, "CLUSTER_COMPAT" in os.environ

print(ray.name, cml.get(other.remote()))
"""
    )
    assert run(tmp_path / "program.py", command=()) == "another ('another', False)\n"


def test_who_asks_gets_it_before_an_installed_ray(tmp_path):
    (tmp_path / "ray.py").write_text("raise SystemExit('the other one')")
    (tmp_path / "program.py").write_text(
        """
import os
import ray

@ray.remote
def here():
    import ray

    return ray.__version__, "CLUSTER_COMPAT" in os.environ

assert ray.get(here.remote()) == (ray.__version__, False)
"""
    )
    assert run(tmp_path / "program.py") == ""


def test_asking_too_late_is_an_error(tmp_path):
    for first, sentence in (("ray", "after `ray` was imported"), ("concurrent_ml", "after init")):
        (tmp_path / "ray.py").write_text("def init(): pass")
        program = f"import {first}; {first}.init()\nfrom concurrent_ml.compat import ray as r; r.install()"
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            check=False,
            capture_output=True,
            text=True,
            timeout=50,
        )
        assert done.returncode == 1
        assert sentence in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "usage"),
        (["-q", "x"], "no option -q"),
        (["-m"], "name of a module"),
        (["none.py"], "cannot read"),
    ],
)
def test_the_command_says_how_it_is_used(arguments, says):
    done = subprocess.run(
        [sys.executable, "-m", "concurrent_ml.compat.ray", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 2
    assert says in done.stderr


MEANINGS = """
import time
import pytest
import ray

ray.init(num_cpus=2, num_gpus=1)

@ray.remote
def sleep():
    time.sleep(1000)

# What was cancelled is an error of the task, too.
ref = sleep.remote()
ray.cancel(ref)
for kind in (ray.exceptions.TaskCancelledError, ray.exceptions.RayTaskError):
    with pytest.raises(kind, match="TaskCancelledError"):
        ray.get(ref)

@ray.remote
class Yielding:
    def items(self):
        yield from range(3)

# A generator that was read is empty; how far it runs ahead is an option of methods, too.
items = Yielding.remote().items.options(num_returns="streaming", _generator_backpressure_num_objects=1).remote()
assert [ray.get(item) for item in items] == [0, 1, 2]
assert list(items) == []

@ray.remote(num_gpus=1)
def process():
    import os
    return os.getpid(), ray.get_runtime_context().get_accelerator_ids()

# A process that used a GPU ends.
(first, used), (second, _) = ray.get(process.remote()), ray.get(process.remote())
assert first != second
assert used == {"GPU": ["0"], "neuron_cores": [], "TPU": [], "HPU": [], "NPU": [], "RBLN": []}

assert ray.cluster_resources()["object_store_memory"] > 0
assert all(node["alive"] for node in ray.nodes())
with pytest.raises(ray.exceptions.ActorAlreadyExistsError):
    Yielding.options(name="one").remote(), Yielding.options(name="one").remote()
"""


def test_what_ray_does_otherwise_is_as_in_ray(tmp_path):
    script = tmp_path / "meanings.py"
    script.write_text(MEANINGS)
    run(script)
