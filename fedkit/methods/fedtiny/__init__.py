"""FedTiny as plain functions over frozen state: no transport, no files, no Flower.

Source: Huang et al., "Distributed Pruning Towards Tiny Neural Networks in Federated Learning"
(arXiv 2212.01977). Where the paper's text could not be checked,
docs/decisions/methods says what was decided.
"""
