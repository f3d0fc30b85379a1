"""Shares of a batch as Hugging Face Jobs: `python hugging_face_jobs.py you/loras s3://bucket/night --shares 4`.

Each share is a job of its own on a rented card. LoRAs come from a repository on the Hub, models by their presets, and
the results go into a store. Secrets are taken from your environment and handed to the jobs.
"""

from __future__ import annotations

import argparse
import os

NAMES = ("HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL")


def command(loras: str, place: str, pair: tuple[str, str], number: int, of: int) -> str:
    """Return what one job runs."""
    source, target = pair
    return (
        'pip install --quiet "loraport[stores,hub]" && '
        f"hf download {loras} --local-dir loras && "
        f"loraport batch loras/ --source {source} --target {target} -o {place} --shard {number}/{of} "
        "--device cuda --keep-going"
    )


def main() -> None:
    """Start the jobs, and print where they can be watched."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("loras", help="a repository with LoRAs")
    parser.add_argument("place", help="where results go, such as s3://bucket/night")
    parser.add_argument("--source", default="wan2.1-t2v-1.3b")
    parser.add_argument("--target", default="fastwan2.1-t2v-1.3b")
    parser.add_argument("--shares", type=int, default=4)
    parser.add_argument("--flavor", default="l4x1")
    given = parser.parse_args()
    from huggingface_hub import run_job

    secrets = {name: os.environ[name] for name in NAMES if name in os.environ}
    for number in range(given.shares):
        words = command(given.loras, given.place, (given.source, given.target), number, given.shares)
        job = run_job(
            image="pytorch/pytorch:2.8.0-cuda12.8-cudnn9-runtime", command=["/bin/sh", "-c", words],
            flavor=given.flavor, secrets=secrets, timeout="12h", attempts=3,
        )  # fmt: skip
        print(f"share {number}: {job.url}")


if __name__ == "__main__":
    main()
