from .hub import export_hub as export_hub
