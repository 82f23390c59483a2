"""The stages that make artifacts, each in its own room; `common` is what two of them share."""
