"""The words, their bytes, the ledger, the git store and the cluster: what node and coordinator share."""
