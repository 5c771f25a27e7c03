"""HELM (crfm-helm) as the maker of prompts and as the judge, in this process, offline and without its cache."""
