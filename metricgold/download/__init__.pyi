from .audit import (
    AuditedArchive as AuditedArchive,
    Fault as Fault,
    archives_of as archives_of,
    audit_archives as audit_archives,
)
from .edits import refuse_edited as refuse_edited, unedited_frames as unedited_frames
from .ledger import DONE as DONE, DROPPED as DROPPED
from .licence import check_licence as check_licence
from .raw_folder import RawFolder as RawFolder, ledger_entry as ledger_entry
from .selection import Group as Group, wanted_groups as wanted_groups
from .stage import (
    download as download,
    fetch as fetch,
    open_raw_folder as open_raw_folder,
    plan as plan,
    raise_together as raise_together,
    verify as verify,
)
