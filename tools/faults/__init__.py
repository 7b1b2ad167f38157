"""What the fault campaigns share: power cuts, flipped bits, kills; see the commands beside this folder."""
