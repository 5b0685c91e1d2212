"""Does the installed environment have what a lock pins?"""

from importlib.metadata import version

import pytest

from tasks.environment_lock import lock_differences


@pytest.fixture
def pyproject(tmp_path):
    file = tmp_path / "pyproject.toml"
    file.write_text('[project]\ndependencies = ["pydantic>=2", "tomli; python_version < \'3.0\'"]\n')
    return file


def test_what_is_installed_as_pinned_does_not_differ(pyproject):
    lock = f"# a comment\npydantic=={version('pydantic')}\nPyYAML=={version('pyyaml')}\n"
    assert lock_differences(lock, pyproject) == []


def test_a_local_label_does_not_count(pyproject):
    assert lock_differences(f"torch=={version('torch').split('+')[0]}\n", pyproject) == []


def test_another_version_is_named(pyproject):
    assert lock_differences("pydantic==1.0\n", pyproject) == [f"pydantic {version('pydantic')}, not ==1.0"]


def test_what_the_project_needs_and_lacks_is_named_and_a_pin_that_nothing_needs_is_not(pyproject):
    pyproject.write_text('[project]\ndependencies = ["pydantic", "no-such-package-here"]\n')
    assert lock_differences("another-package==1.0\n", pyproject) == ["no-such-package-here is missing"]


def test_an_extra_that_the_project_asks_for_counts(pyproject):
    pyproject.write_text('[project]\ndependencies = ["mlflow[auth]"]\n')
    assert lock_differences("", pyproject) == []
