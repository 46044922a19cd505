"""What a Jetson board says about itself, from plain files and without root; a plug-in of `edge_sdk.boards`."""
