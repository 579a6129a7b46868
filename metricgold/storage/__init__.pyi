from .buckets import Folder as Folder, S3Prefix as S3Prefix, StoredObject as StoredObject, open_bucket as open_bucket
from .checkout import git_commit as git_commit
from .files import (
    BLOCK_BYTES as BLOCK_BYTES,
    clear_left as clear_left,
    cut_rows as cut_rows,
    digest_crc32 as digest_crc32,
    digest_file as digest_file,
    digest_folder as digest_folder,
    digest_json as digest_json,
    has_ended as has_ended,
    machine as machine,
    make_folder as make_folder,
    new_hash as new_hash,
    only_writer as only_writer,
    parse_json as parse_json,
    paths_below as paths_below,
    read_json as read_json,
    read_rows as read_rows,
    remove as remove,
    remove_left_aside as remove_left_aside,
    require_ours as require_ours,
    row_line as row_line,
    sync as sync,
    sync_disk as sync_disk,
    sync_tree as sync_tree,
    this_writer as this_writer,
    user_name as user_name,
    write_aside as write_aside,
    write_json as write_json,
)
from .globs import Wanted as Wanted, literal_head as literal_head
from .hdf5 import dataset_within as dataset_within
from .marked_text import fill_between as fill_between
from .messages import (
    Lines as Lines,
    faults_of as faults_of,
    log_formatter as log_formatter,
    message_of as message_of,
    one_line as one_line,
    without_passwords as without_passwords,
)
from .npz import MAX_ARRAY_BYTES as MAX_ARRAY_BYTES, read_npz as read_npz
from .output_lock import (
    LEASE as LEASE,
    LOCK as LOCK,
    Holder as Holder,
    Lease as Lease,
    OutputLost as OutputLost,
    Stopwatch as Stopwatch,
    hold_output as hold_output,
)
from .progress import (
    PROGRESS_FILE as PROGRESS_FILE,
    STOPPED_AND_SAVED as STOPPED_AND_SAVED,
    Progress as Progress,
    StageProgress as StageProgress,
    read_progress as read_progress,
    write_exit_code as write_exit_code,
    write_progress as write_progress,
)
from .s3_client import BadCredentials as BadCredentials, StoreLost as StoreLost, Unreachable as Unreachable
from .sigterm import exit_on_sigterm as exit_on_sigterm, stop_on_sigterm as stop_on_sigterm
from .yaml_files import read_yaml as read_yaml, write_yaml as write_yaml
