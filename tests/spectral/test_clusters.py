"""Links between directions, and the clusters they make."""

import torch

from loraport.spectral.clusters import connected_labels


def test_a_link_counts_in_either_direction():
    links = torch.zeros(5, 5, dtype=torch.bool)
    links[3, 0] = links[1, 4] = True
    assert connected_labels(links).tolist() == [0, 1, 2, 0, 1] == connected_labels(links.mT).tolist()
    assert connected_labels(torch.zeros(5, 5, dtype=torch.bool)).tolist() == [0, 1, 2, 3, 4]
