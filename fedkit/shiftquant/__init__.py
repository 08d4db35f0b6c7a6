"""Sub-8-bit integer training: ShiftQuant's formats, quantisers and products, and L1 norms.

The method is that of Guo et al., "Towards Accurate and Efficient Sub-8-Bit Integer Training"
(arXiv 2411.10948), as we reconstruct it; only the abstract was available, so no equation here is
the paper's own. Ours are: the rule that gives a channel its group, stochastic rounding by bits that
a counter draws, and the three realisations of the product.

In the form that is multiplied, ShiftQuant's levels are some of the levels of a plain int8 tensor,
so where int8 is the narrowest product it saves stored and sent bits, not time.
"""
