// Packs each file of the built page with Brotli and gzip, and leaves only those: the daemon serves what a browser accepts.
// Says what the first load takes, and fails if it is more than it may be.
import { readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { brotliCompressSync, constants, gzipSync } from 'node:zlib';

const dist = new URL('../dist', import.meta.url).pathname;
const limit = 300_000;

const packed = new Map();
for (const entry of readdirSync(dist, { recursive: true, withFileTypes: true })) {
  if (!entry.isFile() || entry.name === 'README') continue;
  const path = join(entry.parentPath, entry.name);
  const plain = readFileSync(path);
  const brotli = brotliCompressSync(plain, {
    params: { [constants.BROTLI_PARAM_SIZE_HINT]: plain.length },
  });
  const gzip = gzipSync(plain, { level: 9 });
  writeFileSync(`${path}.br`, brotli);
  writeFileSync(`${path}.gz`, gzip);
  rmSync(path);
  packed.set(path.slice(dist.length + 1), {
    plain: plain.toString(),
    gzip: gzip.length,
    brotli: brotli.length,
  });
}

const index = packed.get('index.html');
const first = [...packed].filter(([name]) => name === 'index.html' || index.plain.includes(`/${name}"`));
const sum = (key) => first.reduce((total, [, file]) => total + file[key], 0);
console.log(
  `first load: ${first.length} files, ${sum('gzip')} bytes with gzip, ${sum('brotli')} with Brotli`,
);
if (sum('gzip') > limit) {
  console.error(
    `the first load must stay below ${limit} bytes: load what is not needed at once when it is needed`,
  );
  process.exit(1);
}
