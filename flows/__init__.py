"""When and where: Prefect flows around DVC's graph and the command line. Each flow is a page."""
