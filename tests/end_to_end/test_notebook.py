"""Notebooks: a real Jupyter kernel runs cells as a person would write them."""

import nbclient
import nbformat

CELLS = [
    "import asyncio\nimport concurrent_ml as cml\ncml.init(num_cpus=2)",
    # Classes and functions of the notebook itself; prints appear under the cell.
    """class Model:
    def __init__(self, factor):
        self.factor = factor

@cml.remote
def scaled(model, x):
    print("in a task", x)
    return model.factor * x

cml.get([scaled.remote(Model(3), x) for x in range(3)])""",
    # The kernel's own event loop.
    "await asyncio.gather(*[scaled.remote(Model(2), x) for x in range(3)])",
    """@cml.remote
class Counter:
    def __init__(self):
        self.count = 0

    def add(self):
        self.count += 1
        return self.count

counter = Counter.remote()
cml.get([counter.add.remote() for _ in range(3)])""",
    "cml.shutdown()",
]


def test_cells_run_and_show_their_results_and_prints() -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    results = [
        output.data["text/plain"]
        for cell in notebook.cells
        for output in cell.outputs
        if output.output_type == "execute_result"
    ]
    assert results == ["[0, 3, 6]", "[0, 2, 4]", "[1, 2, 3]"]
    printed = "".join(
        output.text for cell in notebook.cells for output in cell.outputs if output.output_type == "stream"
    )
    assert "in a task 2" in printed
