"""Whole objects under names, in a folder or in a store on the network: what runs on many machines share."""
