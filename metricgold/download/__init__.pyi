from .ledger import DONE as DONE, DROPPED as DROPPED
from .raw_folder import Store as Store
from .stage import (
    Group as Group,
    bring as bring,
    check_licence as check_licence,
    download as download,
    ledger_entry as ledger_entry,
    note_passing as note_passing,
    open_store as open_store,
    plan as plan,
    raise_together as raise_together,
    read_passing as read_passing,
    verify as verify,
    wanted_groups as wanted_groups,
)
