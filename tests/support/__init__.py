"""What tests of several wings share: servers that fail on demand, stores, a browser, and where the project is."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"  # real samples; tests that read them are skipped where the folder is absent
