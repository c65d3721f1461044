import { readdirSync, rmSync } from 'node:fs';
import react from '@vitejs/plugin-react';
import { defineConfig, type Plugin } from 'vitest/config';

/** Empties the output folder but for its README, which keeps the folder in the repository. */
function emptyOutput(): Plugin {
  return {
    name: 'empty-output',
    apply: 'build',
    buildStart() {
      for (const name of readdirSync('dist')) {
        if (name !== 'README') rmSync(`dist/${name}`, { recursive: true });
      }
    },
  };
}

export default defineConfig({
  plugins: [react(), emptyOutput()],
  build: {
    outDir: 'dist',
    emptyOutDir: false,
    // The content security policy lets no data: script or font in.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    chunkSizeWarningLimit: 1200,
  },
  server: {
    // `npm run dev` with the daemon's address: QUEZTL_DASHBOARD=http://queztl-….localhost:PORT
    proxy: Object.fromEntries(
      ['/v1', '/session'].map((path) => [path, { target: process.env.QUEZTL_DASHBOARD, ws: true }]),
    ),
  },
  test: {
    // Tests that need a browser's objects say so in their first line.
    environment: 'node',
    include: ['src/**/*.test.{ts,tsx}'],
  },
});
