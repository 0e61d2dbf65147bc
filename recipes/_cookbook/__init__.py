"""What reads the recipes: catalogue, skill, pages, servers, live app, command line."""
