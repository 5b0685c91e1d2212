"""The models of a merge, opened together and compared tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence

from recall.checkpoints import Checkpoint
from recall.errors import BadInput
from recall.lora import LoraAdapter
from recall.tensor_files import TensorFolder, TensorSpec


class Pool:
    """The models of a merge, opened and checked: distinct full checkpoints, and adapters over them.

    Raises:
        BadInput: the models differ in their tensors or shapes, or an adapter does not fit its base.
    """

    def __init__(self, members: Sequence[Checkpoint]) -> None:
        self.members = list(members)
        folders = [(member.base or member).folder for member in members]
        self.bases = {folder: TensorFolder(folder) for folder in dict.fromkeys(folders)}
        self.base_of = [self.bases[folder] for folder in folders]
        self.adapters = [
            LoraAdapter(member.folder, base) if member.base else None
            for member, base in zip(members, self.base_of, strict=True)
        ]
        self.first = self.base_of[0]
        for other in self.bases.values():
            _check_same_tensors(self.first, other)

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Every tensor of the output: as the first model has them."""
        return self.first.specs

    def refuse_tied(self) -> None:
        """Check that no adapter changes an embedding that its base uses as another part too, as its head for instance.

        PEFT adds the difference where the embedding is looked up and nowhere else; in full weights it would be in both.

        Raises:
            BadInput: one does.
        """
        pairs = zip(self.adapters, self.base_of, strict=True)
        for adapter, base in ((adapter, base) for adapter, base in pairs if adapter):
            for name, headed in adapter.embeddings.items():
                # Imported here: it takes transformers, which takes longer than most merges.
                from recall.structure import tied_with

                other = tied_with(base, name, headed)
                if other is not None:
                    raise BadInput(
                        f"adapter {adapter.folder} changes {name}, which {base.folder} uses as {other} too: merged it "
                        "would change both, and PEFT changes one; train it without the embedding, or on an untied base"
                    )

    def close(self) -> None:
        """Close every file."""
        for folder in self.bases.values():
            folder.close()
        for adapter in filter(None, self.adapters):
            adapter.close()

    def same_in_all(self, name: str) -> bytearray:
        """The bytes of a tensor that holds no floating-point numbers, such as a buffer of positions.

        Raises:
            BadInput: they differ between the models.
        """
        content = self.first.read(name)
        for folder in self.bases.values():
            if folder.read(name) != content:
                raise BadInput(
                    f"tensor {name} ({self.specs[name].dtype}) differs in {self.first.folder} and {folder.folder}; "
                    "integers cannot be averaged"
                )
        return content


def _check_same_tensors(first: TensorFolder, other: TensorFolder) -> None:
    for name in sorted(first.specs.keys() | other.specs.keys()):
        specs = first.specs.get(name), other.specs.get(name)
        if specs[0] is None or specs[1] is None:
            where = other.folder if specs[1] is None else first.folder
            raise BadInput(f"tensor {name} is missing in {where}; only models of one architecture can be merged")
        if specs[0].shape != specs[1].shape:
            raise BadInput(
                f"tensor {name} is {_shape(specs[0])} in {first.folder} and {_shape(specs[1])} in {other.folder}; "
                "only models of one architecture can be merged"
            )


def _shape(spec: TensorSpec) -> str:
    return " x ".join(map(str, spec.shape))
