/** The images of the store, and what builds on them. */
import { Button, Group, Table, Text } from '@mantine/core';
import { useQuery, useQueryClient } from '@tanstack/react-query';
import { useState } from 'react';
import { api, value } from '../api/client';
import { imagesQuery, keys, vmsQuery } from '../api/queries';
import type { Image } from '../api/types';
import { command } from '../commands/command';
import { Loaded, Page } from '../layout/Page';
import { useTask } from '../operations/tasks';
import { useMay } from '../session/SessionGate';
import { bytes, clock } from '../units/format';
import { LossDialog } from '../vms/LossDialog';
import { ImportDialog } from './ImportDialog';

export function ImagesPage() {
  const query = useQuery(imagesQuery);
  const [importing, setImporting] = useState(false);
  const mayImport = useMay('admin');
  return (
    <Page
      title="Images"
      actions={mayImport && <Button onClick={() => setImporting(true)}>Import a file</Button>}
    >
      <Loaded query={query}>
        {(images) =>
          images.length === 0 ? (
            <Text c="dimmed">There are no images. A disk image of the host becomes one by import.</Text>
          ) : (
            <ImageTable images={images} />
          )
        }
      </Loaded>
      {importing && <ImportDialog onClose={() => setImporting(false)} />}
    </Page>
  );
}

function ImageTable({ images }: { images: Image[] }) {
  const { data: vms = [] } = useQuery(vmsQuery);
  const names = new Map(vms.map((vm) => [vm.id, vm.name]));
  return (
    <Table.ScrollContainer minWidth={760} scrollAreaProps={{ viewportProps: { tabIndex: 0 } }}>
      <Table aria-label="Images">
        <Table.Thead>
          <Table.Tr>
            {['Name', 'Format', 'Size', 'On the host', 'Builds on', 'Made', 'Used by', 'Actions'].map(
              (label) => (
                <Table.Th key={label}>{label}</Table.Th>
              ),
            )}
          </Table.Tr>
        </Table.Thead>
        <Table.Tbody>
          {images.map((image) => (
            <Table.Tr key={image.name}>
              <Table.Td fw={500}>{image.name}</Table.Td>
              <Table.Td>{image.format}</Table.Td>
              <Table.Td>{bytes(image.size_bytes)}</Table.Td>
              <Table.Td>{bytes(image.allocated_bytes)}</Table.Td>
              <Table.Td>{image.backing ?? '–'}</Table.Td>
              <Table.Td>{clock(image.created_at)}</Table.Td>
              <Table.Td>{image.used_by.map((vm) => names.get(vm) ?? vm).join(', ') || '–'}</Table.Td>
              <Table.Td>
                <ImageActions image={image} />
              </Table.Td>
            </Table.Tr>
          ))}
        </Table.Tbody>
      </Table>
    </Table.ScrollContainer>
  );
}

function ImageActions({ image }: { image: Image }) {
  const cache = useQueryClient();
  const [deleting, setDeleting] = useState(false);
  const check = useTask();
  const may = { check: useMay('operate'), delete: useMay('admin') };
  const of = { params: { path: { image: image.name } } };
  return (
    <Group gap={4} wrap="nowrap">
      {may.check && (
        <Button
          size="compact-xs"
          variant="default"
          loading={check.isPending}
          aria-label={`Check ${image.name}`}
          onClick={() =>
            check.mutate({
              command: command('image', 'check', `store:${image.name}`),
              run: () => value(api.POST('/v1/images/{image}/check', of)),
            })
          }
        >
          Check
        </Button>
      )}
      {may.delete && image.used_by.length === 0 && (
        <Button
          size="compact-xs"
          variant="default"
          aria-label={`Delete ${image.name}`}
          onClick={() => setDeleting(true)}
        >
          Delete
        </Button>
      )}
      {deleting && (
        <LossDialog
          title={`Delete ${image.name}?`}
          loss={`The image ${image.name}, ${bytes(image.allocated_bytes)}, is lost for good.`}
          confirm="Delete"
          work={{
            command: command('image', 'delete', image.name),
            run: async () => {
              await value(api.DELETE('/v1/images/{image}', of));
              await cache.invalidateQueries({ queryKey: keys.images });
              return undefined;
            },
          }}
          onClose={() => setDeleting(false)}
        />
      )}
    </Group>
  );
}
