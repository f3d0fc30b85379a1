"""Names of torchvision.transforms that are looked up when ComfyUI's modules are imported."""


class _Missing:
    """Stands for a transform, and says so when it is used."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __call__(self, *_: object) -> None:
        raise RuntimeError("torchvision is not installed")


class Compose(_Missing):
    """A chain of transforms."""


class Normalize(_Missing):
    """A transform."""


class Resize(_Missing):
    """A transform."""
