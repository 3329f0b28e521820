"""Where modalities meet in one line of tokens: templates, layout, packing, batches."""
