"""A client with rights below some prefixes only, refused as Amazon's S3 refuses it; test stores know no policies.

The policy that it stands for has `s3:ListBucket` with a condition on `s3:prefix`. It then refuses what names no prefix,
as a HEAD of the bucket, and says 403 and not 404 of an object that is missing.
"""

from typing import Any

from botocore.exceptions import ClientError

WRITES = {"put_object", "delete_object", "create_multipart_upload", "upload_part", "complete_multipart_upload"}
READS = {"get_object", "head_object"}


class LimitedClient:
    """boto3's client, but for what is outside the prefixes that it may read or write; both may be listed."""

    def __init__(self, client: Any, reads: tuple[str, ...], writes: tuple[str, ...]) -> None:
        self._client, self._reads, self._writes = client, (*reads, *writes), writes

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def request(**options: Any) -> Any:
            if name in WRITES:
                is_allowed = options["Key"].startswith(self._writes)
            else:
                is_allowed = options.get("Key", options.get("Prefix", "")).startswith(self._reads)
            try:
                if is_allowed and (name == "list_objects_v2" or name in WRITES | READS):
                    return method(**options)
            except ClientError as error:
                if name not in READS or error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                    raise
            refusal = {"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}}
            raise ClientError(refusal, name)

        return request
