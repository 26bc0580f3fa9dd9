"""What a run is made of before anything is computed: what identifies it, and the frozen plans of its stages."""
