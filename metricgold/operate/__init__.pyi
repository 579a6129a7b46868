from .doctor import Finding as Finding, diagnose as diagnose
from .logs import follow_logs as follow_logs, last_lines as last_lines
from .stage import down as down, status as status, up as up
from .systemd import write_units as write_units
