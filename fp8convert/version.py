"""The version, in one place for the package, the plan and the manifest."""

VERSION = "0.1.0"
