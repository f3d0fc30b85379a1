"""Stores of every kind, an S3 server among them."""

import importlib.util
import secrets

import pytest

from loraport.objects.open import open_objects

MOTO = importlib.util.find_spec("moto") and importlib.util.find_spec("flask")
S3FS = importlib.util.find_spec("s3fs")


@pytest.fixture(scope="session")
def s3_server():
    """A server that speaks S3, and lists five objects a page; credentials and its address are in the environment."""
    if not MOTO or not S3FS:
        pytest.skip("the S3 server of moto, or s3fs, is not installed")
    from moto.server import ThreadedMotoServer

    settings = {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "MOTO_S3_DEFAULT_MAX_KEYS": "5",
    }
    with pytest.MonkeyPatch.context() as environment:
        for name, value in settings.items():
            environment.setenv(name, value)
        server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        server.start()
        environment.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        import boto3

        boto3.client("s3").create_bucket(Bucket="loras")
        yield server
        server.stop()


KINDS = ("folder", "file", "memory", "local", "s3")


@pytest.fixture
def place(request, tmp_path):
    """The URL of an empty place in a store of a kind."""
    kind = request.param
    if kind == "s3":
        request.getfixturevalue("s3_server")
    if kind in ("memory", "local"):
        pytest.importorskip("fsspec")
    name = secrets.token_hex(6)
    return {
        "folder": str(tmp_path / "run"),
        "file": f"file://{tmp_path}/a%20run",
        "memory": f"memory://{name}/run",
        "local": f"local://{tmp_path}/run",
        "s3": f"s3://loras/{name}/run",
    }[kind]


@pytest.fixture
def store(place):
    """An empty store of a kind."""
    return open_objects(place)
