"""The encoder of one cache: scenes to shards. Reader -> crops of a size -> VAE -> shards; a killed run resumes.

Frames are decoded ahead of the VAE, in processes where that is worth their start, and a shard is written while the
next one is encoded. Whole scenes may be encoded by other processes (metricgold.predict.dask_cluster). None of this
changes a byte, as long as the devices are of one kind.
"""

import errno
import logging
import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL

from metricgold.datasets import Frame, FrameRef
from metricgold.encode.crops import open_processes, read_crops
from metricgold.images import TrainingSize
from metricgold.log_depth import LOG, Encoding, LogDepth
from metricgold.model import (
    check_size,
    decode_log_depth,
    default_device,
    encode_log_depth,
    encode_rgb,
    filled_log_depth,
    latent_valid_mask,
    load_vae,
    rgb_to_tensor,
    vae_digest,
    vae_factor,
)
from metricgold.params import Encode, LogDepthRange
from metricgold.shards import (
    CROP_MARK,
    INDEX,
    LatentFrame,
    cache_files,
    find_shard,
    is_part_of,
    is_whole,
    read_record,
    record_path,
    shard_names,
    shard_path,
    write_index,
    write_record,
    write_shard,
)
from metricgold.storage import digest_json, only_writer, read_json, remove

log = logging.getLogger(__name__)

SPLIT = "train"
TOO_FEW = "too few valid latents"  # the reason for which a frame or a crop of one is dropped: encode.min_valid
# That decode ahead of the VAE: as fast as two processes; of more of them Python runs one at a time.
NUM_THREADS = 2
MAX_PROCESSES = 16
WORTH_PROCESSES_BYTES = 100_000_000  # of a shard's files: two seconds of decoding, processes take one to start


class SceneJob(NamedTuple):
    """The arguments of SceneEncoder.encode_scene."""

    scene: str
    refs: Sequence[FrameRef]
    source: str | None
    gaps: Mapping[str, int]


@contextmanager
def open_encoder(
    dataset: str, params: Encode, range_m: LogDepthRange, backbone: Path, out: Path, *, device: str = ""
) -> Iterator["SceneEncoder"]:
    """Open a cache for writing; shards of other params or another VAE in it are deleted.

    Until `finish` the cache has no index. Errors as in encode.
    """
    with only_writer(out), ExitStack() as stack:
        made_by = (dataset, params, range_m, backbone, out, vae_digest(backbone), device)
        encoder = SceneEncoder(*made_by, stack=stack, num_processes=min(num_cores(), MAX_PROCESSES))
        encoder.clear()
        yield encoder
        encoder.wait()


class SceneEncoder:
    """A cache open for writing, made by open_encoder.

    When finished it holds the scenes for which encode_scene was called or has_scene was True, in order of their
    names, whatever the order of the calls.
    """

    def __init__(
        self,
        dataset: str,
        params: Encode,
        range_m: LogDepthRange,
        backbone: Path,
        out: Path,
        vae_sha256: str,
        device: str,
        *,
        stack: ExitStack,
        num_processes: int,
    ) -> None:
        # The arguments with which a worker makes an encoder like this one.
        self.made_by = (dataset, params, range_m, backbone, Path(out), vae_sha256, device)
        self.params, self.range_m, self.out = params, range_m, Path(out)
        self.vae = load_vae(backbone, dtype=getattr(torch, params.dtype)).to(device or default_device()).eval()
        check_size(self.vae, (params.height, params.width))
        self.size = TrainingSize(params.height, params.width, vae_factor(self.vae))
        self.measured = (
            {} if params.dtype == "float32" else check_dtype(self.vae, backbone, params, range_m.to_encoding())
        )
        # Everything that all latents depend on. Batch size is part of it: it can change the last bit.
        self.common = {
            "dataset": dataset,
            "split": SPLIT,
            "encode": params.model_dump(exclude={"max_dtype_error"}),
            "log_depth": range_m.model_dump(),
            "vae": vae_sha256,
        }
        self.records: dict[str, dict[str, Any]] = {}
        self._stack, self._num_processes = stack, num_processes
        self._threads = stack.enter_context(ThreadPoolExecutor(NUM_THREADS))
        self._processes: Executor | None = None
        self._writer = stack.enter_context(WriteBehind(self.out))

    def clear(self) -> None:
        """Remove the index, what killed runs left and all files of another identity.

        ValueError where the folder is not a cache.
        """
        present = cache_files(self.out)
        remove(self.out / INDEX)
        for path in (path for path in present if not is_part_of(path, self.common)):
            remove(path)
        for left in self.out.glob(".*-*.part"):
            remove(left)

    def has_scene(self, scene: str, source: str | None) -> bool:
        """Whether the scene, read from a source of this digest, is here undamaged. Its raw data is not needed."""
        record = read_record(self.out, scene)
        if record is None or record["identity"] != self._identity(scene, source) or not is_whole(self.out, record):
            return False
        self.records[scene] = record
        return True

    def encode_scene(
        self, scene: str, refs: Sequence[FrameRef], source: str | None, gaps: Mapping[str, int] | None = None
    ) -> None:
        """Encode what is missing of a scene; its record is written before `wait` returns.

        refs: all its frames of the split, maybe none; source: digest of what they are read from; gaps: by reason,
        how many frames its listing left out. A failed write is raised here, by a later call or by `wait`.
        """
        marked = [ref.name for ref in refs if CROP_MARK in ref.name]
        if marked and self.params.views > 1:
            raise ValueError(
                f"frame {marked[0]}: {CROP_MARK} in a name is kept for crops; expected another, or encode.views 1"
            )
        identity, size = self._identity(scene, source), self.params.frames_per_shard
        refs = sorted(refs, key=lambda ref: ref.name)
        groups = [refs[start : start + size] for start in range(0, len(refs), size)]
        shards = self.whole_shards(scene, identity, groups)

        def write_group(number: int, frames: Sequence[LatentFrame], dropped: Sequence[str]) -> None:
            path = shard_path(self.out, scene, number)
            shards[number] = write_shard(path, frames, dropped, identity | _frames(groups[number]))
            # Hundreds of small scenes would drown a log; their records name each of them.
            level = logging.INFO if len(frames) >= size else logging.DEBUG
            log.log(level, "%s: %s, %d frames", self.common["dataset"], path.name, len(frames))

        def write_last() -> None:
            written = [shard for shard in shards if shard is not None]  # all of them: a failed write is the last one
            self.records[scene] = write_record(self.out, scene, identity, gaps or {}, written)

        for number, group in enumerate(groups):
            if shards[number] is None:
                self._writer.submit(write_group, number, *self.encode_frames(group))
        self._writer.submit(write_last)

    def encode_on(self, executor: Executor, jobs: Sequence[SceneJob]) -> Iterator[str]:
        """encode_scene by an executor's processes, which see the same folders; scenes as they are done."""
        coming = [executor.submit(encode_in_worker, self.made_by, job) for job in jobs]
        try:
            for future in as_completed(coming):
                scene, record = future.result()
                if read_record(self.out, scene) != record:
                    raise ValueError(f"{self.out}: scene {scene} was encoded elsewhere and is not here: another disk?")
                self.records[scene] = record
                yield scene
        finally:
            for future in coming:
                future.cancel()

    def wait(self) -> None:
        """Until everything is written; raises the error of a failed write."""
        self._writer.wait()

    def finish(self) -> Path:
        """Delete files of no scene and write the index. ValueError without any frame."""
        self.wait()
        wanted = {record_path(self.out, scene) for scene in self.records}
        wanted |= {self.out / shard["file"] for record in self.records.values() for shard in record["shards"]}
        for path in cache_files(self.out):
            if path not in wanted:
                remove(path)
        with naming_a_full_disk(self.out):
            index = write_index(self.out, self.common, self.records, self.measured)
        counts = read_json(index)
        log.info(
            "%s: %d frames of %d scenes in the cache", self.common["dataset"], counts["num_frames"], len(self.records)
        )
        if left_out := counts["dropped"]:
            reasons = ", ".join(f"{reason} {count}" for reason, count in left_out.items())
            log.warning("%s: %d frames left out: %s", self.common["dataset"], sum(left_out.values()), reasons)
        return index

    def _identity(self, scene: str, source: str | None) -> dict[str, Any]:
        return self.common | {"scene": scene, "source": source}

    def whole_shards(
        self, scene: str, identity: dict[str, Any], groups: Sequence[Sequence[FrameRef]]
    ) -> list[dict[str, Any] | None]:
        """A scene's complete shards; None for one to be encoded, which is then deleted with the record.

        That is one that is missing or damaged, or lacks a frame that could not be read once and can be by now.
        """
        record = read_record(self.out, scene) or {"shards": []}
        digests = {shard["file"]: shard["sha256"] for shard in record["shards"]}
        shards = []
        for number, group in enumerate(groups):
            path = shard_path(self.out, scene, number)
            shard = find_shard(path, identity | _frames(group), digests.get(path.name))
            shards.append(None if shard and self.can_be_read_by_now(path, shard, group) else shard)
            if shards[-1] is None:
                remove(path)
        # Last: only the record distinguishes a damaged shard from a complete one.
        if None in shards:
            remove(record_path(self.out, scene))
        return shards

    def can_be_read_by_now(self, path: Path, shard: Mapping[str, Any], refs: Sequence[FrameRef]) -> bool:
        """Whether fewer of a shard's frames are unreadable than when it was written; only those it lacks are tried."""
        unreadable = shard["dropped"].get("unreadable", 0)
        present = {name.partition(CROP_MARK)[0] for name in shard_names(path)} if unreadable else set()
        lacking = [ref for ref in refs if unreadable and ref.name not in present]
        return sum(isinstance(read_crops(ref, self.size, self.params), str) for ref in lacking) < unreadable

    def encode_frames(self, refs: Sequence[FrameRef]) -> tuple[list[LatentFrame], list[str]]:
        """Latents of the frames and their crops, in order for each shape, and the reason of each that was dropped."""
        frames: list[LatentFrame] = []
        dropped: list[str] = []
        waiting: defaultdict[tuple[int, ...], list[Frame]] = defaultdict(list)  # by shape
        for ref, crops in zip(refs, self.read_ahead(refs), strict=True):
            if isinstance(crops, str):
                log.warning("dropped %s: %s", ref.name, crops)
                dropped.append("unreadable")
                continue
            batch = waiting[crops[0].valid_mask.shape]
            batch += crops
            while len(batch) >= self.params.batch_size:
                frames += self.encode_batch(batch[: self.params.batch_size])
                del batch[: self.params.batch_size]
        for batch in waiting.values():
            frames += self.encode_batch(batch) if batch else []
        kept = [one for one in frames if one.latent_mask.any() and one.latent_mask.mean() >= self.params.min_valid]
        return kept, dropped + [TOO_FEW] * (len(frames) - len(kept))

    def encode_batch(self, frames: Sequence[Frame]) -> list[LatentFrame]:
        """Latents of frames of one size, each in the range of its own lens."""
        ranges = [self.range_m.to_log_depth(self.size.relative_focal(one.intrinsics)) for one in frames]
        return encode_batch(self.vae, frames, ranges, self.range_m.to_encoding())

    def read_ahead(self, refs: Sequence[FrameRef]) -> Iterator[list[Frame] | str]:
        """Each frame's crops, in order, decoded two batches ahead of the VAE; a message for one that fails.

        Threads decode, until a shard comes that is worth processes.
        """
        if self._processes is None and self._num_processes > NUM_THREADS:
            paths = [path for ref in refs for path in (ref.rgb_path, ref.depth_path) if path.is_file()]
            if sum(path.stat().st_size for path in paths) >= WORTH_PROCESSES_BYTES:
                self._processes = self._stack.enter_context(open_processes(self._num_processes))
        readers = self._processes or self._threads
        coming: deque[Future[list[Frame] | str]] = deque()
        try:
            for ref in refs:
                coming.append(readers.submit(read_crops, ref, self.size, self.params))
                if len(coming) * self.params.views > 2 * self.params.batch_size:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        except BrokenExecutor as error:
            raise OSError("a process that decodes frames was killed, probably by the out-of-memory killer") from error


class WriteBehind:
    """One thread that writes while the next shard is encoded; after a failure it writes nothing more."""

    def __init__(self, out: Path) -> None:
        self._out, self._thread = out, ThreadPoolExecutor(1)
        self._coming: deque[Future[None]] = deque()
        self._has_failed = False

    def __enter__(self) -> "WriteBehind":
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown()

    def submit(self, write: Callable[..., None], *args: object) -> None:
        """Call write(*args) after all that came before; raises the error of an earlier one."""

        def run() -> None:
            if self._has_failed:
                return
            try:
                write(*args)
            except BaseException:
                self._has_failed = True
                raise

        # Behind one shard and its record: not more of them in memory.
        self._wait_for(2)
        self._coming.append(self._thread.submit(run))

    def wait(self) -> None:
        """Until all is written; raises the error of a failed write."""
        self._wait_for(0)

    def _wait_for(self, most: int) -> None:
        with naming_a_full_disk(self._out):
            while len(self._coming) > most:
                self._coming.popleft().result()


@contextmanager
def naming_a_full_disk(out: Path) -> Iterator[None]:
    """Within it, the error of a full disk names the cache and says how to resume."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        message = "disk full; what is finished is kept: make room and run it again"
        raise OSError(error.errno, message, str(out)) from error


_ENCODING = Lock()


def encode_in_worker(made_by: tuple[Any, ...], job: SceneJob) -> tuple[str, dict[str, Any]]:
    """A scene and its record, for an encoder in another process; one scene at a time."""
    with _ENCODING:
        encoder = worker_encoder(*made_by)
        try:
            encoder.encode_scene(*job)
            encoder.wait()
        except BaseException:
            worker_encoder.cache_clear()  # its writer writes no more
            raise
        return job.scene, encoder.records[job.scene]


@lru_cache(maxsize=1)
def worker_encoder(*made_by: Any) -> SceneEncoder:
    """A worker's own encoder, kept from scene to scene. It holds no lock: its parent process does."""
    # Threads decode, since a worker of Dask must not start processes.
    return SceneEncoder(*made_by, stack=ExitStack(), num_processes=1)


def _frames(refs: Sequence[FrameRef]) -> dict[str, str]:
    """What a shard's identity has beyond its scene's."""
    return {"frames": digest_json([ref.name for ref in refs])}


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_dtype(vae: AutoencoderKL, backbone: Path, params: Encode, encoding: Encoding) -> dict[str, float]:
    """How far the VAE's dtype changes depth, for the index. ValueError for more than params.max_dtype_error."""
    exact = load_vae(backbone).to(vae.device).eval()
    error = dtype_error(vae, exact, encoding, params.height, params.width)
    log.info("%s instead of float32 changes decoded depth by %.2g on average", params.dtype, error)
    if not error <= params.max_dtype_error:  # NaN too
        raise ValueError(
            f"encode.dtype {params.dtype} changes depth by {error:.2g} on average, expected at most "
            f"encode.max_dtype_error {params.max_dtype_error:g}; float32 is exact"
        )
    return {"dtype_error": float(f"{error:.2g}")}


@torch.no_grad()
def encode_batch(
    vae: AutoencoderKL, frames: Sequence[Frame], ranges: Sequence[LogDepth], encoding: Encoding = LOG
) -> list[LatentFrame]:
    """Latents of frames of one size: images and filled log depth through the VAE, stored as float16."""
    rgb = rgb_to_tensor(np.stack([frame.rgb for frame in frames]))
    filled = [
        filled_log_depth(log_depth, frame.planar_depth_m, frame.valid_mask)
        for log_depth, frame in zip(ranges, frames, strict=True)
    ]
    rgb_latents = encode_rgb(vae, rgb.to(vae.device))
    depth_latents = encode_log_depth(vae, torch.from_numpy(np.stack(filled)).to(vae.device), encoding)
    masks = [latent_valid_mask(frame.valid_mask, vae_factor(vae)) for frame in frames]
    return [
        LatentFrame(
            rgb_latent=rgb_latent.cpu().numpy().astype(np.float16),
            depth_latent=depth_latent.cpu().numpy().astype(np.float16),
            latent_mask=valid,
            no_surface_mask=latent_valid_mask(frame.valid_mask | frame.no_surface, vae_factor(vae)) & ~valid,
            intrinsics=frame.intrinsics,
            scene=frame.scene,
            name=frame.name,
            valid_mask=frame.valid_mask,
        )
        for frame, valid, rgb_latent, depth_latent in zip(frames, masks, rgb_latents, depth_latents, strict=True)
    ]


@torch.no_grad()
def dtype_error(vae: AutoencoderKL, exact: AutoencoderKL, encoding: Encoding, height: int, width: int) -> float:
    """Mean relative difference in metres of depth encoded by `vae` and by `exact`, both decoded by `exact`.

    The two frames are synthetic, so that the error is known before the first real one and equal in every run: ground
    that runs to the far end, and walls at any distance before it.
    """
    rng = np.random.default_rng(0)
    d = torch.linspace(1, -1, height).reshape(1, -1, 1).repeat(2, 1, width)
    for _ in range(20):
        top, left = rng.integers(0, (height, width))
        d[rng.integers(2), top : top + height // 3, left : left + width // 4] = rng.uniform(-1, 1)
    latents = [encode_log_depth(model, d.to(model.device), encoding) for model in (vae, exact)]
    decoded = (decode_log_depth(exact, latent, encoding) for latent in latents)
    depth_m, exact_m = map(encoding.log_depth.denormalize, decoded)
    return ((depth_m - exact_m).abs() / exact_m).mean().item()
