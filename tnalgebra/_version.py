"""The version, in one place: the package, the build and every row of a study read it here."""

VERSION = "0.1.0"
