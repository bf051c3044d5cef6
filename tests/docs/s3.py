"""``python -m tests.docs.s3 FOLDER``: an S3 that has the checkpoint in FOLDER, until stdin ends.

A process of its own: what the emulator and the client warn of is not what is tested here.
"""

from __future__ import annotations

import sys
from pathlib import Path

KEYS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}
MODELS, CONVERTED = "models", "converted"  # buckets
NAME = "DeepSeek-V3"


def serve(folder: Path) -> None:
    """Print the endpoint when all is there."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    client = boto3.client(
        "s3",
        endpoint_url=url,
        region_name=KEYS["AWS_DEFAULT_REGION"],
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
    )
    for bucket in (MODELS, CONVERTED):
        client.create_bucket(Bucket=bucket)
    for path in sorted(folder.iterdir()):
        client.put_object(Bucket=MODELS, Key=f"{NAME}/{path.name}", Body=path.read_bytes())
    print(url, flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
